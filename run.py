"""The command line: parses flags and runs the module of a mode.

    python run.py --config config/vox-256.yaml --mode train
    python run.py --mode reconstruction --checkpoint model.pt
    python run.py --mode animate --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --result_video Z.mp4

A mode is a module in `modes/` with its flags (`add_arguments`) and its run (`run`). Unsupported flags are rejected; the
message lists the modes that accept them. Slow imports come after the command line was checked.
"""

import argparse
import errno
import functools
import logging
import os
import signal
import sys
import threading
from importlib import import_module

from support.errors import UserError, check_config_path, did_you_mean, did_you_mean_or_known, one_line

# mode: (its module, what it does)
MODES = {
    'train': ('modes.train', 'train a model, or resume its training'),
    'reconstruction': ('modes.reconstruction', 'reconstruct test clips from their first frames, and score them'),
    'animate': ('modes.animate', 'animate a source image by a driving video, or many pairs'),
    'evaluate': ('modes.evaluate', 'score a model, or videos of other code, by a named protocol'),
    'compare': ('modes.compare', 'draw methods side by side: a figure for print, and labelled videos'),
    'study': ('modes.study', 'make a blind user study as a web page, and evaluate its answers'),
    'inspect': ('modes.inspect', 'draw flows, features and codes of a model, scale by scale'),
    'web': ('modes.web', 'serve a web page: animate, inspect, compare, live'),
    'demo': ('modes.demo', 'train a small model on synthetic heads; reconstruct and animate unseen ones'),
    'prepare': ('modes.prepare', 'make a dataset from raw videos'),
    'pack': ('modes.pack', 'pack the clips of a dataset into a few tar files, for network disks'),
    'import': ('modes.import_published', 'convert published weights to a checkpoint'),
    'export': ('modes.export', 'export ONNX graphs that animate without PyTorch'),
    'doctor': ('modes.doctor', 'check that this machine can train'),
}
DEFAULT_MODE = 'train'

# Errors of the operating system that may come from anywhere, and what to do.
ADVICE = {errno.ENAMETOOLONG: 'give another name',
          errno.ENOSPC: 'free space there; if no file is named, in shared memory (/dev/shm)',
          errno.EMFILE: 'raise the limit of open files (ulimit -n), or lower the number of workers',
          errno.ENFILE: 'close files or programs: too many files are open on this machine'}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors."""

    def error(self, message):
        raise UserError(f'{message}; --mode {self.mode} --help lists the flags')


def build_parser(mode):
    """(the parser of a mode, the mode's module)."""
    name, purpose = MODES[mode]
    module = import_module(name)
    parser = Parser(prog=f'run.py --mode {mode}', description=module.__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.mode = mode
    parser.add_argument('--mode', default=DEFAULT_MODE, help=f'{mode}: {purpose}')
    module.add_arguments(parser)
    return parser, module


@functools.cache
def flags_of(mode):
    """All flags of a mode, such as '--checkpoint'."""
    actions = build_parser(mode)[0]._option_string_actions
    return {flag for flag in actions if flag.startswith('--')} - {'--help'}


def parse(arguments):
    """(options, module of their mode).

    Raises UserError for an unknown mode, and for an unsupported flag with the modes that support it or the nearest one.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    first.mode = DEFAULT_MODE
    first.add_argument('--mode', default=DEFAULT_MODE)
    mode = first.parse_known_args(arguments)[0].mode
    if mode not in MODES:
        raise UserError(f'there is no --mode {mode}{did_you_mean_or_known(mode, MODES)}')
    given = {argument.partition('=')[0] for argument in arguments if argument.startswith('--')} - {'--'}
    for flag in sorted(given - flags_of(mode) - {'--help'}):
        if readers := [other for other in MODES if flag in flags_of(other)]:
            raise UserError(f'{flag}: not supported by --mode {mode}, only by {", ".join(readers)}')
        raise UserError(f'there is no flag {flag}'
                        + (did_you_mean(flag, flags_of(mode)) or f'; --mode {mode} --help lists the flags'))
    parser, module = build_parser(mode)
    options = parser.parse_args(arguments)
    options.given = given
    return options, module


def overview():
    """Help without --mode: all modes."""
    modes = '\n'.join(f'  --mode {mode:15} {purpose}' for mode, (_, purpose) in MODES.items())
    examples = __doc__.partition('A mode is')[0].strip()
    return f'{examples}\n\n{modes}\n\npython run.py --mode MODE --help lists the flags of a mode.'


class AboveProgressBar(logging.Handler):
    """Prints log lines without tearing the progress bar."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)


def open_streams():
    """Open closed standard streams, whose numbers files would get, and print what the encoding lacks as '?'."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    sys.stdout, sys.stderr = (stream or open(os.devnull, 'w', encoding='utf-8') for stream in (sys.stdout, sys.stderr))
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')        # Python itself sees to stderr


def main(arguments=None):
    open_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    threading.excepthook = thread_ended
    if not sys.stderr.isatty():            # progress in a pipe or a file: every half minute
        os.environ |= {'TQDM_MININTERVAL': '30', 'TQDM_MAXINTERVAL': '30'}
    try:
        if list(arguments) in ([], ['-h'], ['--help']):
            print(overview(), flush=True)
            return 0
        options, module = parse(arguments)
        if getattr(options, 'config', None):
            check_config_path(options.config)
        logging.basicConfig(level=logging.INFO if os.environ.get('RANK', '0') == '0' else logging.ERROR,
                            format='%(message)s', handlers=[AboveProgressBar()])
        logging.getLogger('fontTools').setLevel(logging.WARNING)       # subsets fonts of figures, line by line
        code = module.run(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:                 # the reader of our output is gone, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (RuntimeError, MemoryError) as error:
        from support.hardware import is_out_of_memory
        if not is_out_of_memory(error):
            raise
        print(f'error: memory is full: {one_line(error)}; lower sizes in model_params, train_params.batch_size or, '
              'where it is a flag, the number of frames or workers', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        print(f'error: {one_line(error)}; {ADVICE[error.errno]}', file=sys.stderr)
        return 2


def thread_ended(failure):
    """Ignore errors of TensorBoard's writer thread (its next call re-raises them); report all others."""
    if not type(failure.thread).__module__.startswith('tensorboard.'):
        threading.__excepthook__(failure)


if __name__ == '__main__':
    sys.exit(main())
