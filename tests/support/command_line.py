"""Commands of run.py within the test's own process."""

import run


def refused(capsys, *arguments, logged=False):
    """The one line that a user's mistake gets; `logged`: among lines of the log."""
    assert run.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    line, = (line for line in err.splitlines() if not logged or line.startswith('error: '))
    assert line.startswith('error: ') and 'Traceback' not in err and (logged or not out)
    return line


def succeeds(capsys, *arguments):
    """What a command prints that ends with exit code 0."""
    assert run.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def commands(folder, files):
    """A short command of every mode that needs the required packages alone; `files` are of `write_inputs`."""
    weights = ['--checkpoint', files['checkpoint'], '--device', 'cpu']
    model = [*weights, '--log_dir', folder / 'log']
    pair = ['--source_image', files['source'], '--driving_video', files['driving']]
    short = ['train_params.num_iterations=2', 'train_params.save_every=1', 'reconstruction_params.num_videos=1',
             'animate_params.num_pairs=1']
    return [[str(part) for part in command] for command in (
        ['--mode', 'train', '--config', files['config'], '--device', 'cpu', '--log_dir', folder / 'log', '--set',
         *short, 'train_params.num_workers=1'],
        ['--mode', 'reconstruction', *model],
        ['--mode', 'animate', *weights, *pair, '--result_video', folder / 'made.mp4', '--find_best_frame'],
        ['--mode', 'evaluate', *model, '--metrics', 'psnr.rgb', 'l1.mean_abs'],
        ['--mode', 'inspect', *model, *pair, '--frames', '1', '--code_frames', '1'],
        ['--mode', 'study', '--checkpoints', f'a={files["checkpoint"]}', f'b={files["checkpoint"]}', '--pairs', '1',
         '--checks', '0', '--device', 'cpu', '--out', folder / 'study'],
        ['--mode', 'import', '--from', 'smac', *(files[f'published{n}'] for n in range(3)), '--config',
         files['published'], '--out', folder / 'imported.pt'],
        ['--mode', 'prepare', '--dataset', 'voxceleb1', '--videos', files['videos'], '--metadata', files['metadata'],
         '--out', folder / 'set', '--size', '16'],
        ['--mode', 'pack', '--clips', folder / 'set', '--out', folder / 'shards'],
        ['--mode', 'compare', '--checkpoints', files['checkpoint'], *pair, '--device', 'cpu', '--out',
         folder / 'compare'],
        ['--mode', 'demo', '--config', files['config'], '--device', 'cpu', '--log_dir', folder / 'log', '--run_name',
         'demo', '--set', *short],
        ['--mode', 'doctor', '--checkpoint', files['checkpoint'], '--device', 'cpu', '--log_dir', folder / 'log'])]
