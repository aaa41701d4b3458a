"""Export of a model to three ONNX graphs that animate without PyTorch, checked against PyTorch.

    DIR/keypoints.onnx     image (batch, 3, H, W)                  -> value (batch, K, 2), jacobian (batch, K, 2, 2)
       /source.onnx        image (1, 3, H, W)                      -> source.*: all that depends on the source alone,
                                                                      and the codes as keys and values; once per video
       /render.onnx        driving.value, driving.jacobian, source.*  -> prediction (batch, 3, H, W),
                                                                         flow (batch, h, w, 2), the finest
       /weights.bin        the weights of all three; what two of them need is stored once
       /export.json        config, versions, and how far the graphs are from PyTorch
       /animate_onnx.py    animates with numpy, onnxruntime and PyAV alone

Images are in [-1, 1]; the number of driving frames is free. GridSample came with opset 16, LayerNormalization with
17, and from 20 on GridSample is another operator that not every runtime reads right: so opset 17.
"""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datasets.synthetic.clips import synthetic_people
from inference import Renderer
from support.errors import UserError
from support.files import make_folder, written_whole
from visualizer import to_tensor

OPSET = 17
TOLERANCE = 1e-3         # of a pixel in [-1, 1]: an eighth of a grey level
INLINE = 1024            # bytes up to which a tensor stays in its graph's own file
ALIGNMENT = 64           # bytes, of tensors in weights.bin
BATCHES = 1, 3           # of the driving frames that are compared; traced with 2
SCRIPT = Path(__file__).with_name('animate_onnx.py')
GRAPHS = 'keypoints', 'source', 'render'

log = logging.getLogger(__name__)


def export(model, config, out):
    """Write `model` (a TalkingHead in eval mode, on the CPU) to the folder `out`, whole or not at all.

    Returns the numbers of export.json: the largest differences from PyTorch, on synthetic heads that the graphs were
    not traced with. Raises UserError where packages are missing, `out` is something else already, or a difference
    is above TOLERANCE.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f'--mode export needs {error.name}: pip install onnx onnxruntime') from None
    out = Path(out)
    if out.exists() and not (out / 'export.json').is_file():
        raise UserError(f'{out}: exists and is no export; choose another folder for --out')
    make_folder(out.parent)
    if model.landmarks:
        model.keypoint_detector.finder = None       # MediaPipe is no part of the graphs: the network detects keypoints
    with written_whole(out, folder=True) as folder:
        _write_graphs(model, config.model_params.image_size, folder)
        _share_weights([folder / f'{name}.onnx' for name in GRAPHS], folder / 'weights.bin')
        differences = _compare(model, config.model_params.image_size, folder)
        numbers = {'max_difference': differences, 'tolerance': TOLERANCE, 'opset': OPSET, 'torch': torch.__version__,
                   'onnx': onnx.__version__, 'onnxruntime': onnxruntime.__version__}
        if not max(differences.values()) <= TOLERANCE:
            raise UserError(f'{out}: not written, as the ONNX graphs give other numbers than PyTorch: {differences}, '
                            f'more than {TOLERANCE:g}; try another version of onnxruntime')
        (folder / 'export.json').write_text(json.dumps(numbers | {'config': config.as_dict()}, indent=1))
        shutil.copyfile(SCRIPT, folder / SCRIPT.name)
    return numbers


# ---------------------------------------------------------------------------- names for nested tensors

def map_tensors(function, value, name):
    """`value` with every tensor in its dataclasses, tuples, lists and dicts replaced by function(name, tensor)."""
    def walk(parts):
        return {key: map_tensors(function, part, f'{name}.{key}') for key, part in parts.items()}
    if isinstance(value, Tensor):
        return function(name, value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **walk({field.name: getattr(value, field.name)
                                                  for field in dataclasses.fields(value)}))
    if hasattr(value, '_asdict'):
        return type(value)(**walk(value._asdict()))
    if isinstance(value, (list, tuple)):
        return type(value)(walk(dict(enumerate(value))).values())
    return walk(value) if isinstance(value, dict) else value


def named_tensors(value, name):
    """The tensors in `value` by name: 'source.features.pyramid.0'."""
    found = {}
    map_tensors(found.setdefault, value, name)
    return found


# ---------------------------------------------------------------------------- graphs

class Part(nn.Module):
    """function(*arguments) -> named tensors, as a module that can be traced; holds the model for its weights."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments):
        return tuple(self.function(*arguments).values())


@torch.no_grad()
def _write_graphs(model, size, folder):
    image, images = torch.rand(1, 3, size, size) * 2 - 1, torch.rand(2, 3, size, size) * 2 - 1
    source, driving = model.encode_source(image), model.keypoints(images)
    state, poses = named_tensors(source, 'source'), named_tensors(driving, 'driving')

    def keypoints(images):
        return {name.removeprefix('driving.'): part
                for name, part in named_tensors(model.keypoints(images), 'driving').items()}

    def encode(image):
        state = named_tensors(model.encode_source(image), 'source')
        return {name: part for name, part in state.items() if name in used}

    def render(*parts):
        given = dict(zip([*poses, *state], parts))
        encoded, pose = (map_tensors(lambda name, _: given[name], value, name)
                         for value, name in ((source, 'source'), (driving, 'driving')))
        generated = model.render(encoded, pose)
        return {'prediction': generated.prediction, 'flow': generated.flows[-1]}

    inputs = _write_graph(folder / 'render.onnx', model, render, {**poses, **state},
                          dynamic=[*poses, 'prediction', 'flow'])
    # What no frame needs, as the finer features of FOMM's encoder, is not made either.
    used = {*inputs, *named_tensors(source.keypoints, 'source.keypoints')}
    _write_graph(folder / 'source.onnx', model, encode, {'image': image}, dynamic=[])
    names = keypoints(images)
    _write_graph(folder / 'keypoints.onnx', model, keypoints, {'images': images}, dynamic=['images', *names])


def _write_graph(path, model, function, inputs, dynamic):
    """Trace `function` of the named `inputs`; the first axis of those in `dynamic` is free. Returns the used inputs."""
    import onnx
    arguments = tuple(inputs.values())
    outputs = list(function(*arguments))
    traced = trace(model, function, arguments)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(traced, arguments, path, dynamo=False, opset_version=OPSET, input_names=list(inputs),
                          output_names=outputs, dynamic_axes={name: {0: 'batch'} for name in dynamic})
    graph = onnx.load(path)
    read = {name for node in graph.graph.node for name in node.input}
    kept = [value for value in graph.graph.input if value.name in read]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    onnx.save(graph, path)
    return [value.name for value in kept]


def trace(model, function, arguments):
    """`function` (tensors -> named tensors) traced to TorchScript; only the batch size may differ from `arguments`."""
    with warnings.catch_warnings(), Portable():
        # That sizes are constants, and the exporter of such graphs the older one, is known: the newer takes minutes.
        warnings.simplefilter('ignore')
        return torch.jit.trace(Part(model, function), arguments, check_trace=False)


class Portable(TorchFunctionMode):
    """Context manager: every size but that of the batch is a plain number, so that traced graphs hold constants.

    What the exporter knows only for known sizes is put into terms of reshape, with -1 for the batch, and
    convolutions with a kernel per sample (MCNet's) into a matrix product: ONNX has no variable number of groups.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.shape.__get__:
            batch, *rest = function(*args) or (None,)
            return torch.Size([]) if batch is None else (batch, *map(int, rest))
        if function in (Tensor.flatten, torch.flatten):
            return _flatten(*args, **kwargs)
        if function in (Tensor.unflatten, torch.unflatten):
            return _unflatten(*args, **kwargs)
        if function in (F.conv2d, torch.conv2d) and isinstance(kwargs.get('groups'), Tensor):
            return _conv_per_sample(*args, **kwargs)
        return function(*args, **kwargs)


def _sizes(x):
    return [int(size) for size in x.shape]


def _flatten(x, start_dim=0, end_dim=-1):
    sizes, start, end = _sizes(x), start_dim % x.dim(), end_dim % x.dim() + 1
    if start == 0:
        return x.reshape(-1, *sizes[end:])
    return x.reshape(-1, *sizes[1:start], math.prod(sizes[start:end]), *sizes[end:])


def _unflatten(x, dim, sizes):
    before, size, after = _sizes(x)[:dim % x.dim()], int(x.shape[dim]), _sizes(x)[dim % x.dim() + 1:]
    if not before:
        return x.reshape(*sizes, *after)
    known = math.prod(int(part) for part in sizes if int(part) != -1)
    return x.reshape(-1, *before[1:], *(size // known if int(part) == -1 else int(part) for part in sizes), *after)


def _conv_per_sample(x, weight, bias, padding, groups):
    """conv2d of x (1, B*C, H, W) with weight (B*C', C, k, k) in B groups -> (1, B*C', H, W), for any B."""
    channels, k, (height, width) = int(weight.shape[1]), int(weight.shape[-1]), _sizes(x)[2:]
    out = int(weight.shape[0]) // int(groups)
    x = F.pad(x.reshape(-1, channels, height, width), (padding,) * 4)
    patches = torch.cat([x[:, :, i:i + height, j:j + width] for i in range(k) for j in range(k)], dim=1)
    kernels = weight.reshape(-1, out, channels, k, k).permute(0, 1, 3, 4, 2).reshape(-1, out, k * k * channels)
    result = kernels @ patches.reshape(-1, k * k * channels, height * width) + bias.reshape(-1, out, 1)
    return result.reshape(1, -1, height, width)


# ---------------------------------------------------------------------------- weights and check

def _share_weights(paths, file):
    """Move the weights of several graphs into one file in their folder; equal tensors are stored once."""
    import onnx
    from onnx.external_data_helper import set_external_data
    places = {}
    with open(file, 'wb') as weights:
        for path in paths:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) <= INLINE:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in places:
                    weights.write(bytes(-weights.tell() % ALIGNMENT))
                    places[key] = weights.tell()
                    weights.write(data)
                tensor.raw_data = data
                set_external_data(tensor, file.name, offset=places[key], length=len(data))
                tensor.ClearField('raw_data')
                tensor.ClearField('float_data')
            onnx.save(model, path)


@torch.inference_mode()
def _compare(model, size, folder):
    """Largest |ONNX - PyTorch| of keypoints and of pixels, driver to frame; two sources, several batch sizes."""
    from tools.onnx.animate_onnx import OnnxHead
    head, renderer = OnnxHead(folder, torch.get_num_threads()), Renderer(model, 'cpu')
    first, second = (next(iter(clips)) for clips in synthetic_people(2, 1, max(BATCHES), size, seed=0).values())
    differences = {'keypoints': 0.0, 'prediction': 0.0}
    for batch, (source, driving) in zip(BATCHES, ((first, second), (second, first))):
        driven, frames = renderer.follow(source.read([0])[0]), driving.read(list(range(batch)))
        keypoints = head.keypoints(to_tensor(frames).numpy())
        prediction, _ = head.render(head.encode_source(driven.image.numpy()), keypoints)
        expected, _, generated = driven(frames)
        for name, ours, theirs in (('keypoints', keypoints['value'], expected.value),
                                   ('prediction', prediction, generated.prediction)):
            difference = np.abs(ours - theirs.numpy())
            worst = float(difference.max()) if np.isfinite(difference).all() else math.inf
            differences[name] = max(differences[name], worst)
    return differences
