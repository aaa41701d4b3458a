"""Differences between two configs, and which of them a resumed run may have."""

from pathlib import Path

from support.errors import UserError

# Keys and sections that may change when a run resumes. All others define the networks, the order of samples or the
# optimisation; a change of them makes another experiment.
MAY_CHANGE = (
    # Schedules and limits are functions of the step; new values hold from the next step on.
    'train_params.num_iterations', 'train_params.motion_iterations', 'train_params.learning_rate',
    'train_params.discriminator_learning_rate', 'train_params.milestones', 'train_params.gamma',
    'train_params.clip_norm', 'train_params.clip_norm_type', 'train_params.clip_apart',
    'train_params.objective_params.loss_weights', 'train_params.objective_params.region_weight',
    'train_params.objective_params.adversarial_start',
    # The average continues from its present value.
    'train_params.ema_decay', 'train_params.ema_exclude',
    # Samples keep their numbers, and step s begins at sample s x batch_size: the run jumps within an endless random
    # stream.
    'train_params.batch_size', 'train_params.accumulate',
    # How the machine computes the same steps.
    'train_params.precision', 'train_params.checkpointing', 'train_params.keep_freed', 'train_params.compile',
    'train_params.num_workers',
    # Logging, validation, checkpoints, and limits of failures.
    'train_params.log_every', 'train_params.val_every', 'train_params.val_pairs', 'train_params.save_every',
    'train_params.keep_checkpoints', 'train_params.max_nonfinite', 'dataset_params.max_broken',
    'dataset_params.synthetic_params.test_people',
    # Not read by training, except the number of rows of a picture.
    'reconstruction_params', 'animate_params', 'visualizer_params',
)
# Not included: betas, which are part of the optimiser's state; the seed; augmentation; the form of a loss.


def changes(before, after):
    """{'section.key': (value before, value after)} of all keys that differ; None for a missing key."""
    old, new = (flat(config.as_dict()) for config in (before, after))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def check_going_on(before, after, path):
    """The changes since the checkpoint at `path`, as one line; '' without any.

    Raises UserError for changes that a resumed run may not have.
    """
    found = changes(before, after)
    refused = {key: values for key, values in found.items() if not may_change(key, *values)}
    if refused:
        raise UserError(f'{path}: a resumed run cannot change {in_words(refused)}; undo it, or start a new run with '
                        f'these weights: --checkpoint {path} --run_name NAME')
    return in_words(found)


def may_change(key, before, after):
    """Whether a resumed run may have another value of 'section.key'."""
    if key == 'dataset_params.root_dir':        # the same dataset in another folder
        return before is not None and after is not None and Path(before).name == Path(after).name
    return any(key == allowed or key.startswith(f'{allowed}.') for allowed in MAY_CHANGE)


def in_words(found):
    """The first five changes as text: 'a.b 1 -> 2, a.c 3 -> 4'."""
    parts = [f'{key} {before!r} -> {after!r}' for key, (before, after) in found.items()]
    return ', '.join(parts[:5]) + (f' and {len(parts) - 5} more' if len(parts) > 5 else '')


def flat(section, prefix=''):
    """Flatten nested dicts to {'section.key': value}."""
    found = {}
    for key, value in section.items():
        found |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return found
