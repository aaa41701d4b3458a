"""The fixtures' weights and inputs, which are not stored: pure functions of names, shapes and seeds."""

import zlib
from contextlib import contextmanager

import numpy as np
import torch

from modules.build import build_discriminator, build_model
from modules.perceptual import VGG19
from modules.published.formats import FORMATS, import_tensors, published_shapes

# Of the weights of kernels and matrices, over the square root of the fan-in; the first ending that fits decides. A
# plain recipe would leave parts of the networks invisible in their outputs.
GAINS = [('kp.weight', 3.0), ('.mask.weight', 3.0), ('.occlusion.weight', 3.0), ('jacobian.weight', 0.25),
         ('refine.convo2.weight', 0.4), ('AttnModule.query_conv.weight', 2.0), ('AttnModule.key_conv.weight', 2.0)]


def recipe(key, shape):
    """The fixtures' weight for a published tensor: a pure function of its name and shape."""
    shape = tuple(int(side) for side in shape)
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith('running_var'):
        weight = 1 + 0.1 * np.abs(noise)
    elif key.endswith('running_mean'):
        weight = 0.1 * noise
    elif key.endswith(('embedding.weight', '/mbUnit.mb')):
        weight = 0.5 * noise
    elif 'position_emb' in key:
        weight = 0.02 * noise
    elif key.endswith('styleconv.weight'):
        weight = 0 * noise
    elif key.endswith(('modulation.bias', 'AttnModule.gamma')):
        weight = 1 + 0.1 * noise
    elif key.endswith('jacobian.bias'):
        weight = np.tile([1., 0., 0., 1.], noise.size // 4) + 0.1 * noise
    elif len(shape) >= 2:
        weight = noise * (_gain(key) / np.sqrt(np.prod(shape[2:] if len(shape) == 5 else shape[1:])))
    elif key.endswith('weight'):
        weight = 1 + 0.1 * noise
    else:
        weight = 0.05 * noise
    return from_fixture(np.asarray(weight, dtype=np.float32))


def _gain(key):
    for ending, gain in GAINS:
        if key.endswith(ending):
            return gain
    return 2 ** 0.5 if key.startswith('vgg19/') or 'down_blocks' in key or 'up_blocks' in key else 1.0


def token_recipe(key, shape):
    """`recipe` for MRFA with its token transformer, whose keypoints would hardly depend on the image otherwise."""
    shape = tuple(int(side) for side in shape)
    if not key.startswith(('model/encoder.pre_feature.', 'model/encoder.transformer.')):
        return recipe(key, shape)
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith('.keypoint_token'):
        weight = 1.5 * noise
    elif noise.ndim == 4:                # filters of mean 0: the constant part of image and features goes
        gain = 8 if key.endswith('pre_feature.conv1.weight') else 1.2
        weight = (noise - noise.mean((1, 2, 3), keepdims=True)) * (gain / np.sqrt(noise[0].size))
    elif '.branches.' in key and key.endswith('.bn2.weight') or '.layer1.' in key and key.endswith('.bn3.weight'):
        weight = 0.25 * (1 + 0.1 * noise)
    elif key.endswith('.patch_to_embedding.weight'):
        weight = (noise - noise.mean(1, keepdims=True)) / np.sqrt(shape[1])
    elif key.endswith('.to_qkv.weight'):
        weight = noise / np.sqrt(shape[1])
        weight[:2 * shape[1]] *= 2       # queries and keys
    elif key.endswith('.mlp_head.1.weight'):
        weight = noise * (2 / np.sqrt(shape[1]))
    elif key.endswith('.mlp_head_jacobian.1.weight'):
        weight = noise * (0.25 / np.sqrt(shape[1]))
    elif key.endswith('.mlp_head_jacobian.1.bias'):
        weight = np.array([1., 0., 0., 1.]) + 0.1 * noise
    else:
        return recipe(key, shape)
    return from_fixture(np.asarray(weight, dtype=np.float32))


def from_fixture(array):
    """A stored float32 array as a tensor on the device that we compute on."""
    return torch.from_numpy(array).to(_place)


_place = torch.device('cpu')


def place():
    """The torch.device that we compute on."""
    return _place


@contextmanager
def on(device):
    """Compute on another device."""
    global _place
    before, _place = _place, torch.device(device)
    try:
        yield
    finally:
        _place = before


def published_state(source, model, discriminator=None):
    """A checkpoint in the published names and shapes, filled by its recipe."""
    constants, fill = FORMATS[source].constants(model), recipe
    if getattr(model.params, 'prior_model', None) == 'mtia':
        constants['model/encoder.transformer.pos_embedding'] = model.keypoint_detector.position
        fill = token_recipe
    state = {}
    for name, shape in published_shapes(source, model, discriminator).items():
        if name in constants:
            state[name] = constants[name].clone()
        elif name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(0)
        else:
            state[name] = fill(name, shape)
    return state


def filled(config, source, with_discriminator=False):
    """Our networks, filled through the importer, in eval mode: (model, discriminator or None)."""
    model = build_model(config)
    discriminator = build_discriminator(config) if with_discriminator else None
    import_tensors(source, published_state(source, model, discriminator), model, discriminator)
    networks = (model, discriminator) if with_discriminator else (model,)
    for network in networks:
        network.to(_place).eval()
    return model, discriminator


def vgg_state():
    """VGG19 of the loss, in torchvision's names."""
    return {name: recipe(f'vgg19/{name}', value.shape) for name, value in VGG19().state_dict().items()}


def images(seeds):
    """The fixtures' inputs: smooth noise (B, 3, 256, 256) in [0, 1] from seeds."""
    low = [np.random.default_rng(int(seed)).uniform(0, 1, (1, 3, 16, 16)).astype(np.float32) for seed in seeds]
    return torch.nn.functional.interpolate(from_fixture(np.concatenate(low)), size=256, mode='bilinear',
                                           align_corners=False)
