"""How two configs differ, and in what a run may differ from what it was when it goes on."""

from pathlib import Path

from support.errors import UserError

# What may change while a run goes on: whole keys, or sections. Everything else says what the networks are, which
# sample has which number, or what is optimised by what: with that changed it is another experiment.
MAY_CHANGE = (
    # Schedules and limits are functions of the step that is taken: they hold from here on.
    'train_params.num_iterations', 'train_params.motion_iterations', 'train_params.learning_rate',
    'train_params.discriminator_learning_rate', 'train_params.milestones', 'train_params.gamma',
    'train_params.clip_norm', 'train_params.clip_norm_type', 'train_params.clip_apart',
    'train_params.objective_params.loss_weights', 'train_params.objective_params.adversarial_start',
    # The average goes on from where it is.
    'train_params.ema_decay', 'train_params.ema_exclude',
    # Samples keep their numbers; step s begins at number s x batch_size, so the run jumps ahead or back in a stream
    # that is endless and random.
    'train_params.batch_size', 'train_params.accumulate',
    # What the machine is asked to do, to the same end.
    'train_params.precision', 'train_params.checkpointing', 'train_params.keep_freed', 'train_params.compile',
    'train_params.num_workers',
    # What is written down and looked at, and when to give up.
    'train_params.log_every', 'train_params.val_every', 'train_params.val_pairs', 'train_params.save_every',
    'train_params.keep_checkpoints', 'train_params.max_nonfinite', 'dataset_params.max_broken',
    'dataset_params.synthetic_params.test_people',
    # Not read by training, but for a number of rows.
    'reconstruction_params', 'animate_params', 'visualizer_params',
)
# Not here: betas, which the optimiser's state brings along; the seed; augmentation; the form of a loss.


def changes(before, after):
    """{'section.key': (value before, value after)} of all keys in which two configs differ; None for one without it."""
    old, new = (flat(config.as_dict()) for config in (before, after))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def check_going_on(before, after, path):
    """What has changed since the checkpoint at `path` was written, in one line; '' if nothing has.

    Raises UserError if it is more than a run may change.
    """
    found = changes(before, after)
    refused = {key: values for key, values in found.items() if not may_change(key, *values)}
    if refused:
        raise UserError(f'{path}: a run cannot change halfway: {in_words(refused)}; set it back, or begin a new run '
                        f'with these weights: --checkpoint {path} --run_name NAME')
    return in_words(found)


def may_change(key, before, after):
    """Whether a run that goes on may find another value at 'section.key'."""
    if key == 'dataset_params.root_dir':        # the same data may lie elsewhere
        return before is not None and after is not None and Path(before).name == Path(after).name
    return any(key == allowed or key.startswith(f'{allowed}.') for allowed in MAY_CHANGE)


def in_words(found, most=5):
    """Changes as one line: 'a.b 1 -> 2, a.c 3 -> 4'."""
    parts = [f'{key} {before!r} -> {after!r}' for key, (before, after) in list(found.items())[:most]]
    return ', '.join(parts) + (f' and {len(found) - most} more' if len(found) > most else '')


def flat(section, prefix=''):
    """Nested dicts as one, {'section.key': value}."""
    found = {}
    for key, value in section.items():
        found |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return found
