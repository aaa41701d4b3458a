"""Valid files, small, that the campaigns begin with: made once per process."""

import io
from fractions import Fraction
from functools import cache

import av
import numpy as np
import torch
from PIL import Image

from benchmarks.parity import weights
from modules.build import build_discriminator, build_model
from motion.template import MotionTemplate, fingerprint
from modules.talking_head import Keypoints
from modules.training_state import State
from tests.support.small import SMALL_METHOD
from tests.support.tiny import ROOT, SIZES, tiny

CONFIGS = sorted((ROOT / 'config').rglob('*.yaml'))


def state_of(config):
    """The checkpoint of an untrained model: dict."""
    torch.manual_seed(0)
    model, discriminator = build_model(config), build_discriminator(config)
    state = State(config.train_params, model, discriminator)
    for network in (model, discriminator):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
    state.update(True, None)
    return state.checkpoint(config, 2)


@cache
def checkpoint():
    """Bytes of a checkpoint of the tiny model, 16 px."""
    return saved({'format': 1} | state_of(smallest()))


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def smallest(*overrides):
    """The tiny model with one codebook scale and few channels: loads in milliseconds."""
    return tiny('model_params.motion_codebook_params.num_codes=8',
                'model_params.appearance_codebook_params.num_codes=8',
                'model_params.autoencoder_params={channels: [8, 8, 4, 4], res_blocks: 1, norm_groups: 2}',
                'model_params.appearance_codebook_params.num_layers=1',
                'model_params.motion_codebook_params.num_layers=1', *overrides)


@cache
def published(source):
    """{network: its tensors} in the format of a public code, and the config that fits."""
    from config import schema
    if source == 'smac':
        config = smallest()
    else:
        name = {'fomm': 'fomm-adv', 'mcnet': 'mcnet'}[source]
        config = schema.load(ROOT / 'config' / f'{name}-vox-256.yaml', [*SMALL_METHOD[name], *SIZES[:2]])
    networks = {}
    for name, tensor in weights.published_state(source, build_model(config), build_discriminator(config)).items():
        network, key = name.split('/', 1)
        networks.setdefault(network, {})[key] = tensor
    if source == 'smac':
        return [{'params': tensors} | ({'params_ema': tensors} if network == 'net_g' else {})
                for network, tensors in networks.items()], config
    return [networks], config


def template(model):
    """A MotionTemplate of the model, of 4 frames that stand still."""
    keypoints = Keypoints(torch.zeros(4, 4, 2), torch.eye(2).expand(4, 4, 2, 2).contiguous())
    return MotionTemplate(keypoints, Fraction(25), 1, fingerprint(model), 'still')


# ---------------------------------------------------------------------------- pictures and videos

def frames(count=12, size=(32, 24)):
    """Noise that moves: (count, height, width, 3) uint8."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 255, (size[1] // 4, size[0] // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    return np.stack([np.roll(still, 2 * n, axis=1) for n in range(count)])


@cache
def pictures():
    """{suffix: [bytes]} of stills of all kinds that are read."""
    image, made = Image.fromarray(frames(1)[0]), {'.png': [], '.jpg': []}
    grey16 = Image.fromarray((frames(1)[0][..., 0].astype(np.uint16) * 257))
    for picture, options in ((image, {}), (image.convert('L'), {}), (image.convert('RGBA'), {}),
                             (image.convert('P'), {}), (grey16, {}), (image.convert('1'), {}),
                             (image, {'transparency': (0, 0, 0)})):
        file = io.BytesIO()
        picture.save(file, 'PNG', **options)
        made['.png'].append(file.getvalue())
    turned = Image.Exif()
    turned[0x0112] = 6
    for picture, options in ((image, {}), (image.convert('L'), {}), (image.convert('CMYK'), {}),
                             (image, {'exif': turned}), (image, {'progressive': True})):
        file = io.BytesIO()
        picture.save(file, 'JPEG', **options)
        made['.jpg'].append(file.getvalue())
    return made


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
