"""The command line: parse, load the config, build, dispatch.

    python run.py --config config/vox-256.yaml --mode train
    python run.py --mode reconstruction --checkpoint model.pt
    python run.py --mode animate --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --result_video Z.mp4
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from config import schema
from logger import RunFolder, check_same_model, checkpoint_config, read_checkpoint
from modules.build import build_model
from modules.published.formats import FORMATS
from support import distributed, hardware
from support.errors import UserError

DEFAULT_CONFIG = 'config/vox-256.yaml'
DEMO_CONFIG = 'config/demo-64.yaml'

log = logging.getLogger('run')


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mode', choices=MODES, default='train')
    parser.add_argument('--config', help=f'YAML file; default {DEFAULT_CONFIG}, or the one inside of --checkpoint')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='section.key=value',
                        help='override config values')
    parser.add_argument('--log_dir', default='log', help='folder of all runs')
    parser.add_argument('--run_name', help="this run's folder in --log_dir; default: the config's name")
    parser.add_argument('--checkpoint', help='weights to use; default: the newest of the run folder')
    parser.add_argument('--resume', metavar='RUN', help='train: go on with the run in this folder, with its config')
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')

    animate = parser.add_argument_group('animate')
    animate.add_argument('--source_image', help='image; without it, pairs of the config or of the test set are animated')
    animate.add_argument('--driving_video', help='video file or folder of frames')
    animate.add_argument('--result_video', help='mp4 or gif; default: in the run folder')
    motion = animate.add_mutually_exclusive_group()
    motion.add_argument('--relative', dest='relative', action='store_true', default=True,
                        help="add the driver's motion to the source's pose (default)")
    motion.add_argument('--absolute', dest='relative', action='store_false', help="take the driver's pose as it is")
    animate.add_argument('--adapt_scale', action='store_true', help="scale relative motion to the source's face")
    animate.add_argument('--find_best_frame', action='store_true',
                         help='start relative motion from the driving frame that is nearest to the source')
    animate.add_argument('--smooth', type=float, default=0, metavar='STRENGTH',
                         help="calm the keypoints of a jittery driver; 1 is much, 0 (default) is off")
    animate.add_argument('--crop', choices=('none', 'auto', 'square', 'legacy'), default='none',
                         help='auto: cut source and driving to a square around the face; RESULT_crop.png shows them')
    animate.add_argument('--face_index', type=int, nargs='+', default=[0], metavar=('SOURCE', 'DRIVING'),
                         help='with --crop auto: which face, of the source and of the driving; 0 (default) is the largest')
    animate.add_argument('--paste_back', action='store_true',
                         help='with --crop auto: lay the result back into the whole source image')
    animate.add_argument('--side_by_side', action='store_true', help='write source | driving | result')

    prepare = parser.add_argument_group('prepare', '--crop square (default) keeps the aspect, legacy crops as the '
                                        'published sets did')
    prepare.add_argument('--dataset', help='voxceleb1 | celebvhq | folder (any videos of talking heads)')
    prepare.add_argument('--videos', help='folder of raw videos, named by their YouTube ids where there are metadata')
    prepare.add_argument('--metadata', help="the data set's published list of clips: vox-metadata.csv, celebvhq_info.json")
    prepare.add_argument('--download', nargs='?', const='yt-dlp', metavar='COMMAND',
                         help='fetch missing videos into --videos; COMMAND is yt-dlp and its options, '
                              'such as "yt-dlp --cookies FILE --limit-rate 5M"')
    prepare.add_argument('--size', type=int, default=256, help='side of the clips, pixels; default 256')
    prepare.add_argument('--format', default='mp4', help='mp4 (a key frame every ten frames) | png | jpeg')
    prepare.add_argument('--workers', type=int, default=1, help='processes; one video each')
    prepare.add_argument('--keep_shared_people', action='store_true',
                         help='keep people in the test set who are in training too')

    evaluate = parser.add_argument_group('evaluate')
    evaluate.add_argument('--protocol', default='same-identity',
                          help='same-identity (default) | cross-identity-relative | ...: evaluation/protocols.py')
    evaluate.add_argument('--metrics', nargs='+', metavar='ID', help="metric ids; default: the protocol's")
    evaluate.add_argument('--list', help='voxceleb1-50 | voxceleb1-50-cross | ... (evaluation/lists/) or a CSV file, '
                                         "DaGAN's and MCNet's too; default: the protocol's, or the whole test set")
    evaluate.add_argument('--path_map', nargs='+', default=[], metavar='[PREFIX=]FOLDER',
                          help='where the clips are, or those whose ids begin with PREFIX; default: the test set')
    evaluate.add_argument('--generated', metavar='FOLDER',
                          help='score these videos, folders of frames or stills instead of a model')
    evaluate.add_argument('--driving', metavar='FOLDER', help='what drove them, named alike')
    evaluate.add_argument('--source', dest='sources', metavar='FOLDER', help='their sources, named alike')
    evaluate.add_argument('--resize', type=int, metavar='PIXELS', help='score --generated at this size')

    doctor = parser.add_argument_group('doctor', 'exit code 0: nothing blocks training; 1: something does')
    doctor.add_argument('--json', action='store_true', help='print the findings as JSON')

    published = parser.add_argument_group('import')
    published.add_argument('--from', dest='source', choices=FORMATS, help='which public code wrote the files')
    published.add_argument('--out', help="where the result goes: import's model, default model.pt; "
                                         "prepare's data set, default data/<dataset>; "
                                         "export's folder, default onnx in the run folder")
    published.add_argument('files', nargs='*', help='published checkpoint files')
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------- modes

def run_train(options, device):
    from train import train
    if options.resume:
        folder = Path(options.resume)
        config = schema.load(folder / 'config.yaml', options.set)
    else:
        config = schema.load(options.config or DEFAULT_CONFIG, options.set)
        folder = run_path(options)
    run = RunFolder(folder, writes=distributed.rank() == 0)
    if run.writes:
        log_to(folder / 'run.log')
        schema.save(config, folder / 'config.yaml')
    try:
        train(config, run, device)
    finally:
        run.close()


def run_reconstruction(options, device):
    from datasets.build import test_clips
    from evaluation.report import format_table
    from reconstruction import reconstruct
    if distributed.rank() > 0:      # --mode evaluate shares clips out; this does not
        return
    config, model = load_model(options, device)
    params = config.reconstruction_params
    clips = test_clips(config.dataset_params, config.model_params.image_size)[:params.num_videos]
    folder = run_path(options) / 'reconstruction'
    report = reconstruct(model, clips, folder, device=device, batch_size=params.batch_size,
                         include_first=params.include_first, save_videos=params.save_videos,
                         precision=config.train_params.precision)
    print(format_table(report))
    print(f'videos, metrics.json, metrics.csv and contact_sheet.png are in {folder}')


def run_animate(options, device):
    import animate
    from datasets.build import test_people
    check_animate(options)
    config, model = load_model(options, device)
    params, size = config.animate_params, config.model_params.image_size
    how = dict(device=device, batch_size=params.batch_size, relative=options.relative, adapt_scale=options.adapt_scale,
               smooth=options.smooth, precision=config.train_params.precision)

    if options.source_image:
        if distributed.rank() == 0:     # one video is work for one process
            animate_one(options, model, size, how)
        return
    root, crops = config.dataset_params.root_dir, options.crop == 'auto'
    if params.pairs_list:
        pairs = animate.read_pairs(params.pairs_list, Path(root, 'test') if root else None, None if crops else size)
    elif crops:
        raise UserError('--crop auto needs --source_image or animate_params.pairs_list: test clips are crops already')
    else:
        pairs = animate.draw_pairs(test_people(config.dataset_params, size), params.num_pairs, params.seed)
    folder = run_path(options) / 'animation'
    animate.animate_pairs(model, pairs, folder, best_frame=options.find_best_frame, crop_size=size if crops else None,
                          made_by=repr(config.model_params), **how)
    if distributed.rank() == 0:
        print(f'{len(pairs)} videos and contact_sheet.png are in {folder}')


def check_animate(options):
    if bool(options.source_image) != bool(options.driving_video):
        raise UserError('--source_image and --driving_video belong together: give both, or neither for pairs')
    if options.crop not in ('none', 'auto'):
        raise UserError(f'--crop {options.crop} is for --mode prepare; expected auto')
    if options.smooth < 0:
        raise UserError(f'--smooth {options.smooth:g}: must not be negative')
    if len(options.face_index) > 2 or min(options.face_index) < 0:
        raise UserError('--face_index: expected the number of a face in the source and, if wanted, one in the driving, '
                        'counted from 0')
    alone = options.source_image and options.crop == 'auto'
    if not alone and (options.paste_back or options.face_index != [0]):
        raise UserError(f'--{"paste_back" if options.paste_back else "face_index"} needs --crop auto and --source_image')
    if options.paste_back and options.side_by_side:
        raise UserError('--paste_back and --side_by_side exclude each other: choose one')


def animate_one(options, model, size, how):
    import animate
    from datasets.constant_rate import open_constant_rate
    from datasets.video import read_image
    names, paste_back = (options.source_image, options.driving_video), None
    source, driving = read_image(names[0]), open_constant_rate(names[1])
    result = Path(options.result_video or run_path(options) / 'animation' / f'{driving.name}.mp4')
    if options.crop == 'auto':
        source, driving, paste_back = animate.crop_to_faces(
            source, driving, size, result.with_name(f'{result.stem}_crop.png'), names=names,
            face_index=(*options.face_index, 0)[:2])
    else:
        source, driving = animate.squeeze(source, driving, size, names)
    anchor = animate.find_best_frame(model, source, driving, how['device']) if options.find_best_frame else None
    sound = Path(names[1]) if Path(names[1]).is_file() else None
    frames = animate.animate(model, source, driving, result, anchor=anchor, side_by_side=options.side_by_side,
                             audio_from=sound, paste_back=paste_back if options.paste_back else None, **how)
    print(f'{result}: {frames} frames at {float(driving.fps):.6g} fps')


def run_evaluate(options, device):
    from evaluation import evaluate
    from evaluation.protocols import find_protocol
    from evaluation.report import format_table
    protocol = find_protocol(options.protocol)
    if bool(options.generated) != bool(options.driving) or options.sources and not options.generated:
        raise UserError('--generated, --driving and --source belong together: give the first two, or none for a model')
    how = dict(name=options.protocol, protocol=protocol, metric_ids=options.metrics or protocol.metrics, device=device)
    prepared = (evaluate_folders if options.generated else evaluate_model)(options, protocol, device)
    part = f'-{Path(options.list).stem}' if options.list else ''
    folder = prepared.pop('folder') / f'{options.protocol}{part}'
    report = evaluate.evaluate(folder=folder, **how, **prepared)
    if report is not None:
        print(format_table(report))
        print(f'metrics.json, metrics.csv, metrics.md and report.html are in {folder}')


def evaluate_folders(options, protocol, device):
    """What evaluate.evaluate takes for videos that were made elsewhere."""
    from evaluation.evaluate import choose_items, clips_in, match_cases
    from evaluation.protocols import Item
    generated, driving, sources = (folder and clips_in(folder, options.resize)
                                   for folder in (options.generated, options.driving, options.sources))
    if options.list:
        list_name, items = choose_items(protocol, options.list, driving)
    else:
        list_name, items = 'all clips', [Item(name) for name in driving]
    cases, missing, extra = match_cases(items, protocol, generated, driving, sources)
    name = Path(options.generated).resolve().name
    return dict(cases=cases, items=items, list_name=list_name, missing=missing, extra=extra,
                subject={'generated': options.generated, 'resized to': options.resize},
                folder=Path(options.log_dir) / (options.run_name or name) / 'evaluation')


def evaluate_model(options, protocol, device):
    """What evaluate.evaluate takes for a model."""
    from datasets.build import test_clips
    from evaluation.evaluate import ClipFinder, Renderer, choose_items, find_cases, test_set
    from evaluation.store import weights_hash
    config, model = load_model(options, device)
    size, precision, pairs = config.model_params.image_size, config.train_params.precision, config.animate_params
    clips = (test_set(options.path_map, size) if options.path_map else
             {clip.name: clip for clip in test_clips(config.dataset_params, size)})
    list_name, items = choose_items(protocol, options.list, clips, pairs.num_pairs, pairs.seed)
    cases, missing = find_cases(items, ClipFinder(clips, options.path_map, size))
    batch_size = config.reconstruction_params.batch_size
    return dict(cases=cases, items=items, list_name=list_name, missing=missing, batch_size=batch_size,
                renderer=Renderer(model, device, batch_size, precision),
                subject={'method': config.method, 'weights': weights_hash(model), 'image size': size,
                         'precision': precision},
                folder=run_path(options) / 'evaluation')


def run_demo(options, device):
    options.config = options.config or DEMO_CONFIG
    run_train(options, device)
    distributed.wait()              # for the checkpoint
    run_reconstruction(options, device)
    run_animate(options, device)
    distributed.wait()
    if distributed.rank() > 0:
        return
    folder = run_path(options)
    print(f"""
A model at {folder}, trained on heads that this project draws itself. Look at
  {folder}/reconstruction/contact_sheet.png   unseen heads, rebuilt from their first frame; videos beside it
  {folder}/animation/contact_sheet.png        unseen heads that follow another one; videos beside it
  {folder}/pictures/                          how it learned: flows and occlusion per scale
  tensorboard --logdir {folder}/tensorboard    curves, codes in use, pictures
Real data next: README.md, "Train on VoxCeleb1".""")


def run_import(options, device):
    from tools.import_checkpoint import import_published
    if not options.source or not options.files:
        raise UserError(f'--mode import needs --from {"|".join(FORMATS)} and the published files')
    config = schema.load(options.config or DEFAULT_CONFIG, options.set)
    out = options.out or 'model.pt'
    count = import_published(options.source, options.files, config, out)
    print(f'{count} tensors imported into {out}')


def run_prepare(options, device):
    import shlex

    from datasets.prepare.run import prepare, summary
    if not options.dataset or not options.videos:
        raise UserError('--mode prepare needs --dataset voxceleb1|celebvhq|folder and --videos, the folder of raw videos')
    root = options.out or f'data/{options.dataset}'
    crop = 'square' if options.crop == 'none' else options.crop
    records = prepare(options.dataset, root, options.videos, options.metadata, crop=crop, size=options.size,
                      format=options.format, workers=options.workers,
                      command=shlex.split(options.download) if options.download is not None else None,
                      keep_shared_people=options.keep_shared_people)
    print(summary(records))
    print(f'every clip and what became of it: {root}/manifest.jsonl')
    if not any(record.status == 'ok' for record in records.values()):
        raise UserError(f'{root}: not one clip could be made; the reasons are in its manifest.jsonl')


def run_export(options, device):
    from tools.onnx.export import export
    config, model = load_model(options, torch.device('cpu'))
    out = Path(options.out or run_path(options) / 'onnx')
    figures = export(model, config, out)
    for name, difference in figures['max_difference'].items():
        print(f'{name}: at most {difference:.2g} from PyTorch')
    for path in sorted(out.iterdir()):
        print(f'{path}: {path.stat().st_size / 1e6:.3g} MB')


def run_doctor(options, device):
    import json

    from tools import doctor
    case = doctor.Case(options.config or DEFAULT_CONFIG, options.set, options.checkpoint, run_path(options), device)
    findings = doctor.examine(case)
    print(json.dumps(doctor.as_dict(findings), indent=1) if options.json else doctor.as_text(findings))
    return int(doctor.blocked(findings))


MODES = {'train': run_train, 'reconstruction': run_reconstruction, 'animate': run_animate, 'demo': run_demo,
         'import': run_import, 'prepare': run_prepare, 'evaluate': run_evaluate,
         'export': run_export, 'doctor': run_doctor}


# ---------------------------------------------------------------------------- shared by the modes

def run_path(options):
    """The run's folder: named after the config, so that the same command finds it again."""
    default = Path(options.config or options.checkpoint or DEFAULT_CONFIG).stem
    return Path(options.log_dir) / (options.run_name or default)


def load_model(options, device):
    """(config, model in eval mode): the weights for inference of a checkpoint and the config that fits them."""
    if options.checkpoint:
        path, state = options.checkpoint, read_checkpoint(options.checkpoint)
    else:
        found = RunFolder(run_path(options), writes=False).newest()
        if found is None:
            raise UserError(f'no checkpoint in {run_path(options) / "checkpoints"}: train first '
                            '(--mode train), or give --checkpoint')
        path, state = found
    config = checkpoint_config(state, path) if options.checkpoint and not options.config else None
    if config is None:
        config = schema.load(options.config or DEFAULT_CONFIG, options.set)
        check_same_model(config, state, path)
    elif options.set:
        config = schema.override(config, options.set)
    model = build_model(config)
    model.load_state_dict(state['ema'])
    log.info('weights: %s, step %d', path, state['step'])
    hardware.keep_freed_memory()
    hardware.flush_denormals()
    return hardware.adapted(config, device), model.to(device, memory_format=torch.channels_last).eval()


def choose_device(name):
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: expected auto, cpu, cuda, cuda:N or mps') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise UserError(f'--device {name}: PyTorch finds no CUDA GPU on this machine; use --device cpu')
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f'--device {name}: this machine has {torch.cuda.device_count()} GPU(s)')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu')
    return device


def log_to(path):
    """Also keep the log in a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logging.getLogger().addHandler(handler)


class AboveProgressBar(logging.Handler):
    """Prints log lines without tearing the progress bar."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        device = distributed.start(choose_device(options.device))
        logging.basicConfig(level=logging.INFO if distributed.rank() == 0 else logging.ERROR,
                            format='%(message)s', handlers=[AboveProgressBar()])
        return MODES[options.mode](options, device) or 0
    except UserError as error:
        # From a data loading process it arrives behind that process's traceback; the message is the last line.
        print(f'error: {str(error).strip().splitlines()[-1].removeprefix("config.errors.UserError: ")}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    finally:
        distributed.stop()


if __name__ == '__main__':
    sys.exit(main())
