"""Small valid files of every kind that the project reads, each made once per process."""

import io
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.parity import weights
from config import schema
from datasets.manifest import Record
from modules.build import build_discriminator, build_model
from motion.template import MotionTemplate, fingerprint, save
from modules.talking_head import Keypoints
from modules.training_state import State
from support.files import encoded
from tests.support.small import SMALL_METHOD
from tests.support.tiny import ROOT, SIZES, tiny

CONFIGS = sorted((ROOT / 'config').rglob('*.yaml'))
VOX = 'video_id,start,end,bbox,fps,width,height,partition,person_id\n'
IDS = ('id10280#aaaaaaaaaaa#000010#000020', 'id10281#bbbbbbbbbbb#000030#000040', 'id10282#aaaaaaaaaaa#000050#000060')
_EVALUATED = 'source,source_time,driving,driving_time,anchor_time\n' + ''.join(
    f'{a},{time},{b},,0.08\n' for a, time in zip(IDS, ('', '0', '0.04')) for b in IDS)
_PAIRS = 'source,driving,anchor\n' + ''.join(f'{a}.mp4,{b}.mp4,{anchor}\n' for a, anchor in zip(IDS, ('', '0', '3'))
                                            for b in IDS) + f'still.png,{IDS[0]}.mp4,\n'
_METADATA = VOX + ''.join(f'{video * 11},{start},{start + 8},4-2-28-22,25,32,24,{part},id{start}\n'
                           for video, start, part in (('a', 0, 'train'), ('a', 4, 'test'), ('b', 1, 'train')))
_CLIP = {'ytb_id': 'aaaaaaaaaaa', 'duration': {'start_sec': 0.0, 'end_sec': 0.32},
        'bbox': {'top': 0.1, 'bottom': 0.9, 'left': 0.2, 'right': 0.8}, 'version': 'v0.1'}
CELEBVHQ = {'meta_info': {}, 'clips': {'aaaaaaaaaaa_0': _CLIP, 'bbbbbbbbbbb_0': _CLIP | {'ytb_id': 'bbbbbbbbbbb'}}}
RECORDS = [vars(Record(name, name.split('#')[0], 'train', 'ok', None, 'aaaaaaaaaaa', 0.0, 12, 25, 'square',
                       (0, 0, 24, 24), 16, 'mp4', f'{n:064x}')) for n, name in enumerate(IDS)]
TABLES = {'eval-list': [_EVALUATED], 'pairs-list': [_PAIRS], 'vox-metadata': [_METADATA]}     # kind: CSV files


@cache
def checkpoint():
    """Bytes of a checkpoint of the smallest model, after one step."""
    config = smallest()
    torch.manual_seed(0)
    model, discriminator = build_model(config), build_discriminator(config)
    state = State(config.train_params, model, discriminator)
    for network in (model, discriminator):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
    state.update(True, None)
    return saved({'format': 1} | state.checkpoint(config, 2))


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def smallest(*overrides):
    """The config of a model that loads in milliseconds."""
    return tiny('model_params.motion_codebook_params.num_codes=8',
                'model_params.appearance_codebook_params.num_codes=8',
                'model_params.autoencoder_params={channels: [8, 8, 4, 4], res_blocks: 1, norm_groups: 2}',
                'model_params.appearance_codebook_params.num_layers=1',
                'model_params.motion_codebook_params.num_layers=1', *overrides)


def networks_of(source, config):
    """{network: state dict} in the names of a published code, filled by its recipe."""
    networks = {}
    for name, tensor in weights.published_state(source, build_model(config), build_discriminator(config)).items():
        network, key = name.split('/', 1)
        networks.setdefault(network, {})[key] = tensor
    return networks


@cache
def published(source):
    """([contents of each file in the format of a published code], the config that fits)."""
    if source == 'smac':
        config = smallest()
    else:
        name = {'fomm': 'fomm-adv', 'mcnet': 'mcnet'}[source]
        config = schema.load(ROOT / 'config' / f'{name}-vox-256.yaml', [*SMALL_METHOD[name], *SIZES[:2]])
    networks = networks_of(source, config)
    if source == 'smac':
        return [{'params': tensors} | ({'params_ema': tensors} if network == 'net_g' else {})
                for network, tensors in networks.items()], config
    return [networks], config


def write_inputs(folder):
    """{name: path} of files below `folder` that commands of every mode can name."""
    files = {'config': 'config.yaml', 'checkpoint': 'model.pt', 'source': 'source.png', 'driving': 'driving.mp4',
             'metadata': 'metadata.csv', 'videos': 'videos', 'published': 'published.yaml',
             **{f'published{n}': f'published{n}.pth' for n in range(3)}}
    (folder / 'videos').mkdir(parents=True)
    config = smallest('train_params.num_iterations=10', 'train_params.log_every=1', 'train_params.save_every=2',
                      'train_params.val_every=5', 'train_params.keep_checkpoints=20', 'train_params.batch_size=2',
                      'model_params.motion_codebook_params.revive_after=2')
    (folder / 'config.yaml').write_text(yaml.safe_dump(config.as_dict()))
    (folder / 'model.pt').write_bytes(checkpoint())
    (folder / 'source.png').write_bytes(pictures()['.png'][0])
    (folder / 'driving.mp4').write_bytes(videos()[0][1])
    for name in 'abc':
        (folder / 'videos' / f'{name * 11}.mp4').write_bytes(videos()[0][1])
    (folder / 'metadata.csv').write_text(VOX + ''.join(
        f'{name * 11},{start},{start + 4},{left}-2-28-22,25,32,24,{part},id{name}{start}\n'
        for left, (name, part) in enumerate((('a', 'train'), ('b', 'train'), ('c', 'test'))) for start in (0, 3, 6)))
    networks, config = published('smac')
    (folder / 'published.yaml').write_text(yaml.safe_dump(config.as_dict()))
    for n, contents in enumerate(networks):
        (folder / f'published{n}.pth').write_bytes(saved(contents))
    return {name: folder / file for name, file in files.items()}


def template(model):
    """A MotionTemplate of the model: 4 frames that do not move."""
    keypoints = Keypoints(torch.zeros(4, 4, 2), torch.eye(2).expand(4, 4, 2, 2).contiguous())
    return MotionTemplate(keypoints, Fraction(25), 1, fingerprint(model), 'still')


@cache
def motion():
    """Bytes of a motion template that the checkpoint's model can read."""
    model = build_model(smallest())
    model.load_state_dict(torch.load(io.BytesIO(checkpoint()), weights_only=True)['ema'])
    with tempfile.TemporaryDirectory() as folder:
        save(template(model), path := Path(folder, 'motion.npz'))
        return path.read_bytes()


def frames(count=12, size=(32, 24)):
    """Moving noise: (count, height, width, 3) uint8."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 255, (size[1] // 4, size[0] // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    return np.stack([np.roll(still, 2 * n, axis=1) for n in range(count)])


@cache
def pictures():
    """{suffix: [bytes]} of stills of all kinds that are read."""
    image, turned = Image.fromarray(frames(1)[0]), Image.Exif()
    grey16 = Image.fromarray((frames(1)[0][..., 0].astype(np.uint16) * 257))
    turned[0x0112] = 6
    png = [encoded(picture.save, format='PNG') for picture in (
        image, image.convert('L'), image.convert('RGBA'), image.convert('P'), grey16, image.convert('1'))]
    jpeg = [encoded(picture.save, format='JPEG') for picture in (image, image.convert('L'), image.convert('CMYK'))]
    return {'.png': [*png, encoded(image.save, format='PNG', transparency=(0, 0, 0))],
            '.jpg': [*jpeg, *(encoded(image.save, format='JPEG', **options)
                              for options in ({'exif': turned}, {'progressive': True}))]}


# suffix: (format, video codec or None, its pixels, with sound)
VIDEOS = (('.mp4', 'mp4', 'libx264', 'yuv420p', False), ('.mp4', 'mp4', 'libx264', 'yuv420p', True),
          ('.mp4', 'mp4', None, None, True), ('.mp4', 'mp4', 'mpeg4', 'yuv420p', False),
          ('.mov', 'mov', 'mjpeg', 'yuvj420p', False), ('.mkv', 'matroska', 'libx264', 'yuv420p', True),
          ('.webm', 'webm', 'libvpx-vp9', 'yuv420p', False), ('.webm', 'webm', None, None, True),
          ('.avi', 'avi', 'mpeg4', 'yuv420p', False), ('.avi', 'avi', 'mjpeg', 'yuvj420p', True),
          ('.gif', 'gif', 'gif', 'rgb8', False))


@cache
def videos():
    """[(suffix, bytes)] of videos of all kinds that are read, and of sound alone."""
    return [(suffix, video(*how)) for suffix, *how in VIDEOS]


def video(container='mp4', codec='libx264', pixels='yuv420p', sound=False, count=12):
    """Bytes of a video of `count` frames."""
    file = io.BytesIO()
    file.name = f'x.{container}'
    with av.open(file, 'w', format=container) as output:
        if codec:
            stream = output.add_stream(codec, rate=Fraction(25), options={'g': '5'} if codec != 'gif' else {})
            stream.width, stream.height, stream.pix_fmt = 32, 24, pixels
        if sound:
            audio = output.add_stream('libopus' if container == 'webm' else 'mp3' if container == 'avi' else 'aac',
                                      rate=48000)
            audio.layout = 'mono'
        for frame in frames(count) if codec else ():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24').reformat(format=pixels)))
        if codec:
            output.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format='fltp', layout='mono')
            silence.sample_rate = 48000
            for n in range(4):
                silence.pts = 4800 * n
                output.mux(audio.encode(silence))
            output.mux(audio.encode(None))
    return file.getvalue()
