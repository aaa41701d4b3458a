"""What stands between this machine and a training run: environment, config, data, weights, disk and memory.

Every check stands alone: what breaks one is a finding and does not keep the others from running. Exit codes of
`--mode doctor`: 0 nothing blocks training, 1 something does, 2 (as everywhere) the command line itself is wrong.
"""

import dataclasses
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from config import schema
from datasets.build import test_people, training_people
from datasets.frames import Augmentation, PairDataset, find_people
from datasets.video import STILL_SUFFIXES, open_clip
from logger import check_same_model, checkpoint_config, read_checkpoint
from metrics.face import FAN_URLS, MODEL_URL
from metrics.fid import INCEPTION_URL
from metrics.identity import ANTELOPE_URL, OPENFACE_URL
from metrics.perceptual import BACKBONES
from modules import training_memory
from modules.build import build_discriminator, build_model
from modules.objective import needs_discriminator, needs_vgg
from support import hardware, weights
from support.errors import UserError

OK, NOTE, WARNING, BLOCKS = 'ok', 'note', 'warning', 'blocks'

NEEDED = 'torch', 'torchvision', 'numpy', 'yaml', 'tqdm', 'av', 'PIL', 'tensorboard'
USUAL_SIZES = 32, 64, 128, 256, 512
CLIPS_OPENED = 400        # of each partition, evenly spread: an index takes milliseconds, a data set has 20,000
PAIRS_TIMED = 24          # training pairs that are read to time the loader ...
SECONDS_TIMED = 10        # ... as far as this allows
GIB = 2 ** 30


class Extra(NamedTuple):
    """Something optional.

    packages: {what is imported: what is installed}
    files:    weights, as urls; they belong at weights.checkpoint_path(url)
    unlocks:  what works with it
    """
    packages: dict[str, str]
    files: tuple[str, ...]
    unlocks: str


EXTRAS = (
    Extra({'lpips': 'lpips'}, (BACKBONES['vgg'],), 'LPIPS of reconstruction and evaluation (lpips.vgg)'),
    Extra({'pytorch_fid': 'pytorch-fid'}, (INCEPTION_URL,), 'FID (fid.*)'),
    Extra({'face_alignment': 'face-alignment'}, FAN_URLS, 'AKD (akd.*), --find_best_frame by face landmarks'),
    Extra({}, (OPENFACE_URL,), 'AED (aed.*)'),
    Extra({'insightface': 'insightface', 'onnxruntime': 'onnxruntime'}, (ANTELOPE_URL,), 'CSIM (csim.*)'),
    Extra({'mediapipe': 'mediapipe'}, (MODEL_URL,),
          'ARD and jitter (ard.*, jitter.mediapipe), --crop auto, --mode prepare'),
    Extra({'onnx': 'onnx', 'onnxruntime': 'onnxruntime'}, (), '--mode export'),
    Extra({'yt_dlp': 'yt-dlp'}, (), '--mode prepare --download'),
)


@dataclass(frozen=True)
class Finding:
    """severity: OK, NOTE, WARNING or BLOCKS (training); what was found, where, and what to do about it."""
    severity: str
    what: str
    where: str = ''
    todo: str = ''
    check: str = ''


@dataclass
class Case:
    """What is examined: the arguments of the command line, and the config once it has been read."""
    config_path: str
    overrides: list[str]
    checkpoint: str | None
    run_folder: Path
    device: torch.device
    config: Any = None
    needed: float | None = None    # bytes of a training step, once the networks have been tried

    @property
    def part(self):
        """Samples that go through the networks together."""
        return -(-self.config.train_params.batch_size // self.config.train_params.accumulate)

    @property
    def size(self):
        return self.config.model_params.image_size


def examine(case):
    """All findings about a Case, in the order in which they should be mended."""
    findings = []
    for name, check in CHECKS.items():
        if case.config is None and check not in WITHOUT_CONFIG:
            found = [Finding(NOTE, 'not checked, as the config cannot be used')]
        else:
            found = _isolated(check, case)
        findings += [dataclasses.replace(finding, check=name) for finding in found]
    return findings


def _isolated(check, case):
    """What a check finds, up to where it breaks; breaking is a finding too."""
    found = []
    try:
        for finding in check(case):
            found.append(finding)
    except UserError as error:
        found.append(_from_error(error))
    except Exception as error:      # a broken set-up breaks in ways nobody has thought of
        found.append(Finding(BLOCKS, f'the check broke: {type(error).__name__}: {" ".join(str(error).split())[:300]}',
                             todo='mend what the message names; if it names nothing of yours, report it'))
    return found


def _from_error(error, severity=BLOCKS):
    """A UserError says what is wrong and where; what to do."""
    what, _, todo = str(error).partition('; ')
    return Finding(severity, what, todo=todo)


# ---------------------------------------------------------------------------- environment

def check_versions(case):
    yield Finding(OK, f'Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.platform()}')
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(BLOCKS, f'missing packages: {", ".join(missing)}', todo='pip install -r requirements.txt')


def check_device(case):
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bf16 = 'bf16' if torch.cuda.is_bf16_supported() else 'no bf16'
            yield Finding(OK, f'GPU {index}: {gpu.name}, {gpu.total_memory / GIB:.1f} GiB, {bf16}')
    else:
        why = 'this PyTorch is built without CUDA' if torch.version.cuda is None else 'no driver or no GPU'
        yield Finding(NOTE, f'no CUDA GPU ({why}): {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads')


def check_video(case):
    import av
    versions = sorted(av.library_versions.items())
    libraries = ', '.join(f'{name} {".".join(map(str, version))}' for name, version in versions)
    yield Finding(OK, f'PyAV {av.__version__} with {libraries}')
    uses = ('h264', 'r', 'reading mp4'), ('libx264', 'w', 'writing mp4'), ('vp9', 'r', 'reading webm')
    for codec, mode, use in uses:
        try:
            av.codec.Codec(codec, mode)
        except av.error.FFmpegError:
            yield Finding(WARNING, f'these FFmpeg libraries lack {codec}, needed for {use}',
                          todo='pip install --force-reinstall av')


def check_extras(case):
    for extra in EXTRAS:
        missing = [package for module, package in extra.packages.items() if importlib.util.find_spec(module) is None]
        absent = [f'pip install {" ".join(missing)}'] if missing else []
        for url in extra.files:
            absent += _weights_todo(url)
        if absent:
            yield Finding(NOTE, f'not available: {extra.unlocks}', todo='; '.join(absent))
        else:
            yield Finding(OK, f'available: {extra.unlocks}')


def _weights_todo(url):
    """What to do about the optional weights of `url`: a list, empty where they are in order."""
    path = weights.checkpoint_path(url)
    if path.suffix == '.zip':
        unpacked = path.with_suffix('')
        return [] if list(unpacked.glob('**/*.onnx')) else [f'unpack {url} into {unpacked}']
    try:
        check_weights_file(path)
    except UserError as error:
        return [f'download {url} to {path}' + (f' ({error})' if path.is_file() else '')]
    return []


def check_weights_file(path):
    """UserError for weights that are missing, no weights, or other than their name says.

    torch.hub's names end in the first digits of their SHA-256, so a file that was cut shows.
    """
    weights.check_file(path)
    digits = re.search(r'-([0-9a-f]{8,})\.', path.name)
    if digits:
        with open(path, 'rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
        if not found.startswith(digits[1]):
            raise UserError(f'{path}: is cut short or not the published file ({path.stat().st_size:,} bytes, its '
                            f'SHA-256 begins with {found[:8]}); download it again')


# ---------------------------------------------------------------------------- config

def check_config(case):
    """Reads the config; everything after it needs one."""
    try:
        case.config = schema.load(case.config_path, case.overrides)
    except UserError as error:
        what, _, todo = str(error).partition('; ')
        # A key that is wrong has its cure in the message; a size that does not fit has none.
        size = re.search(r'image_size=(\d+)', what)
        todo = todo or size and _working_size(case, int(size[1]))
        todo = todo or 'correct the value, or remove the key for its default'
        yield Finding(BLOCKS, what, case.config_path, todo)
        return
    config, params = case.config, case.config.train_params
    yield Finding(OK, f'{config.method} at {case.size} px, batch of {params.batch_size} in {params.accumulate} part(s)'
                      f', {params.precision}, {params.num_iterations:,} iterations', case.config_path)
    if params.batch_size % params.accumulate:
        yield Finding(BLOCKS, f'train_params.batch_size={params.batch_size} cannot be split into '
                              f'accumulate={params.accumulate} equal parts', case.config_path,
                      'choose a multiple of accumulate as batch_size')
    if params.precision == 'bf16' and not hardware.has_bf16(case.device):
        yield Finding(WARNING, f'{case.device} has no bf16 arithmetic, so training would use fp32', case.config_path,
                      '--set train_params.precision=fp32')


def check_networks(case):
    """One forward pass, without numbers: image, flow, window and hourglass sizes fit together, or they do not."""
    try:
        case.needed = training_memory.estimate(case.config, case.part)
    except (RuntimeError, ValueError) as error:
        yield Finding(BLOCKS, f'the networks cannot take images of {case.size} px: {" ".join(str(error).split())[:99]}',
                      case.config_path, _working_size(case, case.size) or 'correct the sizes in model_params')
        return
    yield Finding(OK, 'image, flow, windows and heat maps fit together')


def _working_size(case, wanted):
    """What to do about sizes that do not fit: the usual image size nearest to `wanted` that does, or nothing."""
    for size in sorted(USUAL_SIZES, key=lambda size: abs(size - wanted)):
        try:
            config = schema.load(case.config_path, [*case.overrides, f'model_params.image_size={size}'])
            training_memory.estimate(config, 2)
        except (UserError, RuntimeError, ValueError):
            continue
        return f'--set model_params.image_size={size}, which fits the other values'
    return ''


# ---------------------------------------------------------------------------- data

def check_training_data(case):
    yield from _partition(case, 'train')


def check_test_data(case):
    yield from _partition(case, 'test')


def _partition(case, partition):
    data, params = case.config.dataset_params, case.config.train_params
    if data.root_dir is None:
        yield Finding(OK, f'{partition}: the embedded heads, drawn as they are needed')
        return
    folder = Path(data.root_dir, partition)
    try:
        people = find_people(data.root_dir, partition, data.id_sampling, None)
    except UserError as error:
        yield _from_error(error)
        if not data.id_sampling:
            return
        # Names may be all that is wrong: then the clips themselves can still be examined.
        people = find_people(data.root_dir, partition, False, None)
        nameless = [name for name in people if '#' not in name]
        yield Finding(NOTE, f'{len(nameless)} of {len(people)} names have no person in them, such as {nameless[0]}',
                      str(folder))
    clips = [clip for group in people.values() for clip in group]
    opened = clips[::-(-len(clips) // CLIPS_OPENED)]
    broken, frames, sizes = {}, [], {}
    for clip in tqdm(opened, desc=f'{partition} clips', leave=False, dynamic_ncols=True):
        try:
            count, size = _look_at(clip.path)
            frames.append(count)
            sizes.setdefault(size, clip.name)
        except UserError as error:
            broken[clip.name] = error

    fewest, most = (min(frames), max(frames)) if frames else (0, 0)
    yield Finding(OK if frames else BLOCKS, f'{len(clips)} clips of {len(people)} people; {len(opened)} opened: '
                  f'{fewest} to {most} frames, ' + ', '.join(f'{w}x{h}' for w, h in sorted(sizes)[:4]), str(folder),
                  '' if frames else 'put clips there that can be read')
    if broken:
        # Training passes over broken clips up to a limit; validation and evaluation do not.
        fatal = partition == 'test' or len(broken) > data.max_broken or not frames
        severity = BLOCKS if fatal else WARNING
        yield from (_from_error(error, severity) for error in list(broken.values())[:10])
        yield Finding(severity, f'{len(broken)} of {len(opened)} clips cannot be read: '
                      f'{", ".join(list(broken)[:10])}', str(folder), 'replace or remove these clips')
    if frames and fewest < 2:
        yield Finding(WARNING, 'there are clips of one frame, which show no motion', str(folder), 'remove them')
    for (width, height), name in sizes.items():
        if width != height:
            yield Finding(WARNING, f'{name} is {width}x{height} and would be squeezed into a square', str(folder),
                          'crop the faces first: --mode prepare')
            break
    if sizes and max(map(min, sizes)) < case.size:
        yield Finding(WARNING, f'no clip has {case.size} px, so all are enlarged', str(folder),
                      f'--set model_params.image_size={_power_below(max(map(min, sizes)))}, or prepare larger clips')
    if partition == 'train' and frames:
        epochs = params.num_iterations * params.batch_size / len(people)
        yield Finding(OK, f'{len(people)} samples per epoch (one per person); {epochs:,.0f} epochs in all', str(folder))


def _power_below(size):
    return 2 ** (size.bit_length() - 1)


def _look_at(path):
    """(frames, (width, height)) of a clip; UserError if it is damaged or its stills have several sizes.

    Of a video, the whole index is read and the first and the middle frame are decoded.
    """
    clip = open_clip(path)
    if path.is_dir():
        sizes = {}
        for still in sorted(path.iterdir()):
            if still.suffix.lower() in STILL_SUFFIXES and not still.name.startswith('.'):
                sizes.setdefault(_still_size(still), still.name)
        if len(sizes) > 1:
            named = ', '.join(f'{name} is {width}x{height}' for (width, height), name in list(sizes.items())[:3])
            raise UserError(f'{path}: its frames have {len(sizes)} sizes: {named}; crop and resize all frames alike')
        return len(clip), next(iter(sizes))
    first, _ = clip.read([0, len(clip) // 2])
    return len(clip), first.shape[1::-1]


def _still_size(path):
    try:
        with Image.open(path) as image:      # reads the header alone
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as an image ({error}); replace or remove the file') from None


def check_people(case):
    """Nobody in both partitions: such a test set flatters."""
    data = case.config.dataset_params
    both = sorted(set(training_people(data, case.size)) & set(test_people(data, case.size)))
    if both and data.id_sampling:
        yield Finding(WARNING, f'{len(both)} people are in both train and test, such as {", ".join(both[:3])}',
                      str(data.root_dir), 'move their clips to one of the two')


def check_loader(case):
    """Seconds per batch, from pairs read here, one after the other."""
    data, params = case.config.dataset_params, case.config.train_params
    pairs = PairDataset(training_people(data, case.size), params.seed, Augmentation(**vars(data.augmentation_params)),
                        data.max_broken)
    pairs[0]                                       # the first one builds what later ones find built
    start, count = time.perf_counter(), 0
    while count < PAIRS_TIMED and time.perf_counter() - start < SECONDS_TIMED:
        count += 1
        pairs[count]
    each = (time.perf_counter() - start) / count
    workers = max(1, min(params.num_workers, os.cpu_count()))
    yield Finding(OK, f'about {each * params.batch_size / workers:.2g} s per batch of {params.batch_size}, {workers}'
                      f' process(es): {1000 * each:.0f} ms per pair, over {count} pairs')


# ---------------------------------------------------------------------------- weights

def check_training_weights(case):
    if needs_vgg(case.config.train_params.objective_params):
        path = weights.checkpoint_path(weights.VGG19_URL)
        try:
            check_weights_file(path)
        except UserError as error:
            what = str(error).partition('; ')[0]
            yield Finding(BLOCKS, f'the perceptual loss needs VGG19: {what}', str(path),
                          f'download {weights.VGG19_URL} to {path}, or train without it: '
                          '--set train_params.objective_params.loss_weights.perceptual=0')
        else:
            yield Finding(OK, 'VGG19 of the perceptual loss is there and complete', str(path))
    else:
        yield Finding(OK, 'this objective needs no VGG19')
    with torch.device('meta'):
        parts = build_model(case.config).pretrained_parts()
    for layout, (_, folder) in parts.items():
        for path in weights.pretrained_files(layout, folder):
            try:
                check_weights_file(path)
            except UserError as error:
                yield Finding(BLOCKS, f'training begins with a trained {layout} network: {error}', str(path),
                              f'README.md, "Methods", says who publishes {path.name}: put it there')
            else:
                yield Finding(OK, f'{path.name} of the {layout} network is there', str(path))


def check_checkpoint(case):
    """The given checkpoint, or the newest of the run folder, from which training would go on."""
    if case.checkpoint:
        paths = [Path(case.checkpoint)]
    else:
        paths = sorted(path for path in (case.run_folder / 'checkpoints').glob('*.pt') if path.stem.isdigit())[-1:]
        if not paths:
            yield Finding(OK, f'no checkpoint in {case.run_folder} yet: training starts at step 0')
            return
    [path] = paths
    state = read_checkpoint(path)
    checkpoint_config(state, path)
    check_same_model(case.config, state, path)
    wanted = _meta_state(case.config)
    for part in ('model', 'ema'):
        if {name: tensor.shape for name, tensor in state[part].items()} != wanted:
            yield Finding(BLOCKS, f'the tensors of {part!r} are not those of the model', str(path),
                          'use another checkpoint')
            return
    yield Finding(OK, f'checkpoint of step {state["step"]}, whole', str(path))


def _meta_state(config):
    with torch.device('meta'):
        return {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}


# ---------------------------------------------------------------------------- disk and memory

def _weight_bytes(config):
    """Bytes of the weights of (model, discriminator); nothing is allocated."""
    def size(network):
        return 4 * sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
    with torch.device('meta'):
        needed = needs_discriminator(config.train_params.objective_params)
        return size(build_model(config)), size(build_discriminator(config) if needed else None)


def check_disk(case):
    """A checkpoint holds model, EMA and two moments, three of the discriminator's; one more is written than kept."""
    model, discriminator = _weight_bytes(case.config)
    checkpoint = 4 * model + 3 * discriminator
    needed = checkpoint * (case.config.train_params.keep_checkpoints + 1)
    wanted = case.run_folder.absolute()
    folder = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    figures = f'{free / GIB:.1f} GiB free, {needed / GIB:.1f} GiB needed for checkpoints of {checkpoint / GIB:.2f} GiB'
    if not os.access(folder, os.W_OK):
        yield Finding(BLOCKS, 'no permission to write', str(folder), 'choose another --log_dir')
    elif free < needed:
        yield Finding(BLOCKS, f'the disk is full: {figures}', str(folder), 'free space, choose another --log_dir, or '
                      '--set train_params.keep_checkpoints=1')
    else:
        yield Finding(OK, figures, str(folder))


def check_memory(case):
    """What training_memory.estimate estimates (its rule is there), in fp32, against what the device has."""
    if case.needed is None:
        yield Finding(NOTE, 'not estimated, as the networks cannot run')
        return
    gpu = case.device.type == 'cuda'
    limit = torch.cuda.mem_get_info(case.device)[0] if gpu else hardware.available_memory()
    where = torch.cuda.get_device_name(case.device) if gpu else 'main memory'
    if limit is None:
        yield Finding(NOTE, f'{case.needed / GIB:.1f} GiB are needed; this system does not say how much is free', where)
    elif case.needed > limit:
        yield _from_error(training_memory.too_large(case.config, case.part, limit))
    else:
        yield Finding(OK, f'about {case.needed / GIB:.1f} GiB for a training step of {case.part} at once in fp32, '
                          f'{limit / GIB:.1f} GiB free', where)


# ---------------------------------------------------------------------------- report

CHECKS = {'versions': check_versions, 'device': check_device, 'video': check_video, 'config': check_config,
          'networks': check_networks, 'training data': check_training_data, 'test data': check_test_data,
          'people': check_people, 'loader': check_loader, 'training weights': check_training_weights,
          'checkpoint': check_checkpoint, 'disk': check_disk, 'memory': check_memory, 'extras': check_extras}
WITHOUT_CONFIG = check_versions, check_device, check_video, check_config, check_extras


def blocked(findings):
    """Whether anything keeps training from starting."""
    return any(finding.severity == BLOCKS for finding in findings)


def to_do(findings):
    """What to do, in order, each once: first what blocks training, then what spoils it; not what is merely optional."""
    ordered = [finding for severity in (BLOCKS, WARNING) for finding in findings if finding.severity == severity]
    return list(dict.fromkeys(f'{_located(finding)} -> {finding.todo}' for finding in ordered if finding.todo))


def _located(finding):
    return finding.what + (f' [{finding.where}]' if finding.where not in finding.what else '')


def as_dict(findings):
    """For machines: {'blocked', 'to_do', 'findings'}."""
    return {'blocked': blocked(findings), 'to_do': to_do(findings),
            'findings': [dataclasses.asdict(finding) for finding in findings]}


def as_text(findings):
    """For people: findings by check, then what to do."""
    lines, last = [], None
    for finding in findings:
        title, last = (finding.check if finding.check != last else ''), finding.check
        todo = f'; {finding.todo}' if finding.todo and finding.severity == NOTE else ''
        lines.append(f'{title:17} {finding.severity:8} {_located(finding)}{todo}')
    steps = to_do(findings)
    lines += ['', 'To do, in this order:' if steps else 'Nothing to do.']
    lines += [f'  {number}. {step}' for number, step in enumerate(steps, 1)]
    lines += ['', 'Training is blocked.' if blocked(findings) else 'Nothing blocks training.']
    return '\n'.join(lines)
