"""Animation from exported ONNX graphs, with NumPy, ONNX Runtime and PyAV but without PyTorch.

    python animate_onnx.py face.png driver.mp4 result.mp4 [--size 512] [--absolute] [--batch_size 4]

`run.py --mode export` copies the program to the folder of the graphs; the folder can be moved. Both inputs are resized
to squares, so crop them around the face. The result has the driver's frame rate and no sound.
"""

import argparse
import functools
import itertools
import os
from pathlib import Path

import av
import numpy as np
import onnxruntime


class OnnxHead:
    """The exported model: images (B, 3, H, W) float32 in [-1, 1], keypoints as dicts of value and jacobian."""

    def __init__(self, folder, threads=0):
        """threads: of onnxruntime; 0 lets it choose."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {name: onnxruntime.InferenceSession(Path(folder) / f'{name}.onnx', options)
                         for name in ('keypoints', 'source', 'render')}
        self.size = self.sessions['source'].get_inputs()[0].shape[-1]

    def _run(self, name, inputs):
        session = self.sessions[name]
        outputs = [output.name for output in session.get_outputs()]
        wanted = {value.name: inputs[value.name] for value in session.get_inputs()}
        return dict(zip(outputs, session.run(outputs, wanted)))

    def keypoints(self, images):
        return self._run('keypoints', {'images': images})

    def encode_source(self, image):
        """All that depends on the source (1, 3, H, W) alone, by name; its keypoints among it."""
        return self._run('source', {'image': image})

    def render(self, source, driving):
        """Frames (B, 3, H, W) and finest flow (B, h, w, 2) for `encode_source`'s result and B frames' keypoints."""
        made = self._run('render', source | {f'driving.{name}': value for name, value in driving.items()})
        return made['prediction'], made['flow']


def relative_motion(source, initial, driving):
    """Adds to the source's keypoints what has changed in the driver since its initial frame (FOMM, Sec. 3.4).

        value    = source + driving - initial
        jacobian = driving initial^-1 source
    """
    moved = {'value': source['source.keypoints.value'] + driving['value'] - initial['value']}
    if 'jacobian' in driving:
        change = driving['jacobian'] @ np.linalg.inv(initial['jacobian'])
        moved['jacobian'] = change @ source['source.keypoints.jacobian']
    return moved


def animate(head, source_image, frames, relative=True, batch_size=1, large=None):
    """Yields (H, W, 3) uint8 frames: `source_image` with the motion of `frames`, all (H, W, 3) uint8.

    large: the source image at the size of the result, whose detail the result gets; None for the model's size
    """
    source, initial, frames = head.encode_source(to_tensor([source_image])), None, iter(frames)
    large = None if large is None else to_tensor([large])[0]
    while batch := list(itertools.islice(frames, batch_size)):
        driving = head.keypoints(to_tensor(batch))
        if initial is None:
            initial = {name: value[:1] for name, value in driving.items()}
        poses = relative_motion(source, initial, driving) if relative else driving
        prediction, flow = head.render(source, poses)
        if large is None:
            yield from to_uint8(prediction)
        else:
            yield from (to_uint8(add_detail(*made, large)[None])[0] for made in zip(prediction, flow))


# ---------------------------------------------------------------------------- detail: motion/detail.py in NumPy

TOLERANCE = 0.14
TORN, WHOLE = 0.2, 0.6


def add_detail(prediction, flow, source):
    """The prediction (3, h, h) at the size of the source (3, H, H), with its detail along the flow (h', w', 2)."""
    size, large = prediction.shape[-1], source.shape[-1]
    down, linear, up = resizing(large, size, triangle), resizing(size, large, triangle), resizing(size, large, cubic)
    grow = [corner_resizing(count, size) for count in flow.shape[:2]]
    flow = grow[0] @ flow.transpose(2, 0, 1) @ grow[1].T                                    # (2, h, h)
    identity = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, size, dtype=np.float32)]))
    displacement = (flow - identity) * ((size - 1) / 2)                                     # pixels of the model
    moved = sample(source, linear @ displacement @ linear.T * (large / size))
    small = down @ moved @ down.T
    gate = agreement(prediction, small) * visibility(displacement)
    return up @ (prediction - gate * small) @ up.T + (up @ gate @ up.T).clip(0, 1) * moved


def agreement(prediction, moved):
    """(h, h) in [0, 1]: how far the prediction agrees with the warped source."""
    difference = np.abs(prediction - moved).mean(0)
    counts, sums = (_around(image) for image in (np.ones_like(difference), difference))
    return np.exp(-(sums / counts / TOLERANCE) ** 2)


def _around(image):
    """Sums over 3 x 3 pixels."""
    height, width = image.shape
    padded = np.pad(image, 1)
    return sum(padded[i:i + height, j:j + width] for i in range(3) for j in range(3))


def visibility(displacement):
    """(h, h) in [0, 1]: where the flow, by its displacement (2, h, h), keeps the source whole."""
    padded = np.pad(displacement, ((0, 0), (1, 1), (1, 1)), mode='edge')
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    a, c, b, d = dx[0] + 1, dx[1], dy[0], dy[1] + 1
    scale = (np.hypot(a + d, b - c) - np.hypot(a - d, b + c)) / 2
    share = ((scale - TORN) / (WHOLE - TORN)).clip(0, 1)
    return share ** 2 * (3 - 2 * share)


def sample(image, displacement):
    """The image (3, H, H), read at each pixel's place plus its displacement (2, H, H), in pixels, bilinear."""
    size = image.shape[-1]
    places = (displacement + np.stack(np.meshgrid(*2 * [np.arange(size, dtype=np.float32)]))).clip(0, size - 1)
    left, top = low = places.astype(np.intp)
    right, bottom = (low + 1).clip(0, size - 1)
    x, y = places - low
    upper, lower = (image[:, row, left] * (1 - x) + image[:, row, right] * x for row in (top, bottom))
    return upper * (1 - y) + lower * y


def cubic(x):
    """The kernel of bicubic resizing (Keys, 1981), for x >= 0."""
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)


def triangle(x):
    """The kernel of bilinear resizing, for x >= 0."""
    return (1 - x).clip(0).astype(np.float32)


@functools.cache
def resizing(many, few, kernel):
    """The matrix (few, many) that resizes a line of pixels, without aliasing where it gets shorter."""
    scale = many / few
    wide = max(scale, 1)
    centres = (np.arange(few)[:, None] + 0.5) * scale
    weights = kernel(np.abs(np.arange(many) + 0.5 - centres) / wide)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.cache
def corner_resizing(few, many):
    """The matrix (many, few) of linear resizing where the first and last pixels' centres stay."""
    return np.stack([np.interp(np.linspace(0, few - 1, many), np.arange(few), line) for line in np.eye(few)],
                    1).astype(np.float32)


# ---------------------------------------------------------------------------- files


def to_tensor(frames):
    """Frames (H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1


def to_uint8(images):
    """(B, 3, H, W) nominally in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)


def open_container(path):
    """PyAV's container, whatever encoding its title is in: up to PyAV 18, one that is not UTF-8 was an error."""
    return av.open(path, **({} if int(av.__version__.partition('.')[0]) >= 19 else {'metadata_errors': 'ignore'}))


def read_frames(path, size):
    """Yields the upright frames of a video, or the one of a still image, as (size, size, 3) uint8."""
    with open_container(path) as container:
        for frame in container.decode(video=0):
            small = frame.reformat(size, size, 'rgb24', interpolation='BICUBIC').to_ndarray()
            yield np.ascontiguousarray(np.rot90(small, frame.rotation // 90))


def write_video(path, frames, rate):
    """Write frames (H, W, 3) uint8 as an mp4, whole or not at all."""
    unfinished = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        with av.open(str(unfinished), 'w', format='mp4') as container:
            stream = None
            for frame in frames:
                if stream is None:
                    stream = container.add_stream('libx264', rate, options={'crf': '18'})
                    stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], 'yuv420p'
                    context, wide = stream.codec_context, frame.shape[0] > 576        # players then assume BT.709
                    context.colorspace = context.color_primaries = 1 if wide else 6
                    context.color_trc, context.color_range = 1, 1
                picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
                container.mux(stream.encode(picture.reformat(format='yuv420p',
                                                             dst_colorspace='ITU709' if wide else 'ITU601')))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='image')
    parser.add_argument('driving', help='video')
    parser.add_argument('result', type=Path, help='mp4')
    parser.add_argument('--absolute', action='store_true', help="take the driver's pose as it is, not its motion")
    parser.add_argument('--size', type=int, help="side of the result in pixels, with the source's detail; default: the "
                        "model's images")
    parser.add_argument('--batch_size', type=int, default=4, help='driving frames rendered at once')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 lets onnxruntime choose')
    parser.add_argument('--models', type=Path, default=Path(__file__).parent, help='folder of the ONNX files')
    options = parser.parse_args(arguments)

    for path in map(Path, (options.source, options.driving)):
        if path.exists() and options.result.exists() and options.result.samefile(path):
            parser.error(f'{options.result}: the result would replace an input ({path}); choose another name')
    head = OnnxHead(options.models, options.threads)
    if options.size is not None and options.size < head.size:
        parser.error(f"--size {options.size}: is below the model's images of {head.size} px")
    try:
        source = next(read_frames(options.source, head.size))
        large = next(read_frames(options.source, options.size)) if options.size else None
        with open_container(options.driving) as container:
            rate = container.streams.video[0].average_rate
        frames = read_frames(options.driving, head.size)
        made = animate(head, source, frames, not options.absolute, options.batch_size, large)
        write_video(options.result, made, rate)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        parser.error(f'{error}; give an image, a video, and a name for an mp4 in a folder that exists')


if __name__ == '__main__':
    main()
