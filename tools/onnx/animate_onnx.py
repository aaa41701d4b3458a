"""Animation from exported ONNX graphs, with NumPy, ONNX Runtime and PyAV but without PyTorch.

    python animate_onnx.py face.png driver.mp4 result.mp4 [--absolute] [--batch_size 4]

Lies beside the graphs that `run.py --mode export` wrote, and may be copied with them. Both inputs are resized to
the model's square, so crop them around the face. The result has the driver's frame rate and no sound.
"""

import argparse
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
        """Frames (B, 3, H, W) for what `encode_source` gave and keypoints of B driving frames."""
        poses = {f'driving.{name}': value for name, value in driving.items()}
        return self._run('render', source | poses)['prediction']


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


def animate(head, source_image, frames, relative=True, batch_size=1):
    """Yields (H, W, 3) uint8 frames: `source_image` with the motion of `frames`, all (H, W, 3) uint8."""
    source, initial, frames = head.encode_source(to_tensor([source_image])), None, iter(frames)
    while batch := list(itertools.islice(frames, batch_size)):
        driving = head.keypoints(to_tensor(batch))
        if initial is None:
            initial = {name: value[:1] for name, value in driving.items()}
        poses = relative_motion(source, initial, driving) if relative else driving
        yield from to_uint8(head.render(source, poses))


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
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
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
    parser.add_argument('--batch_size', type=int, default=4, help='driving frames rendered at once')
    parser.add_argument('--threads', type=int, default=0, help='of onnxruntime; 0 lets it choose')
    parser.add_argument('--models', type=Path, default=Path(__file__).parent, help='folder of the ONNX files')
    options = parser.parse_args(arguments)

    head = OnnxHead(options.models, options.threads)
    try:
        source = next(read_frames(options.source, head.size))
        with open_container(options.driving) as container:
            rate = container.streams.video[0].average_rate
        frames = read_frames(options.driving, head.size)
        write_video(options.result, animate(head, source, frames, not options.absolute, options.batch_size), rate)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        parser.error(f'{error}; give an image, a video, and a name for an mp4 in a folder that exists')


if __name__ == '__main__':
    main()
