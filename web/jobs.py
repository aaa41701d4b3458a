"""What the worker does for the page: each job is a function of a web.worker.Bench, and picklable with its arguments.

All rendering is that of the command line: animate.py, figures/, inference.py. Slow imports wait for a job.
"""

from pathlib import Path
from typing import NamedTuple

from support.errors import UserError
from web.limits import MOST_FRAMES, check_clip, check_picture

EXAMPLES, EXAMPLE_FRAMES = 3, 50
PORTRAIT_SIZE, DRIVER_SIZE = 256, 128
EXAMPLE_SEED = 1_000_000   # of the embedded identities that nothing is trained on
CODE_FRAMES = 50           # frames of the driver over which Inspect counts codes
PICTURE = 448              # side of a small model's picture that is to be clicked into, pixels; about


class Animated(NamedTuple):
    """Paths of what was made, or None, and how many frames in how many seconds."""
    video: str | None
    motion: str | None
    frames: int


def begin(bench, checkpoints, folder):
    """Load all models, and draw examples into the folder; returns [(path of a portrait, path of a driver)]."""
    from datasets.synthetic.clips import synthetic_people
    from datasets.video_writer import VideoWriter
    from support.files import make_folder
    from visualizer import save_png
    for checkpoint in checkpoints:
        bench.model(checkpoint)
    make_folder(folder)
    people = (synthetic_people(2 * EXAMPLES, 1, EXAMPLE_FRAMES, size, EXAMPLE_SEED)
              for size in (PORTRAIT_SIZE, DRIVER_SIZE))
    portraits, drivers = ([clip for clip, in clips.values()] for clips in people)
    examples = []
    for number, (source, driving) in enumerate(zip(portraits[:EXAMPLES], drivers[EXAMPLES:]), 1):
        portrait, driver = folder / f'portrait-{number}.png', folder / f'driver-{number}.mp4'
        save_png(portrait, source.read([0])[0])
        with VideoWriter(driver, driving.fps) as video:
            for frame in driving.frames():
                video.write(frame)
        examples.append((str(portrait), str(driver)))
    return examples


def _check(settings, bench, checkpoint):
    """Check the files of AnimationSettings before anything decodes them; returns the number of frames."""
    from motion import template as motion_template
    if settings.source_image:
        check_picture(settings.source_image)
    if settings.source_video:
        check_clip(settings.source_video)
    if settings.driving_video:
        return len(check_clip(settings.driving_video))
    length = len(motion_template.load(settings.driving_motion, bench.model(checkpoint).renderer.model))
    if length > MOST_FRAMES:
        raise UserError(f'{settings.driving_motion}: holds {length} frames; this page takes {MOST_FRAMES} at most')
    return length


def animate(bench, checkpoint, settings):
    """Animated by AnimationSettings whose result lies in an existing folder."""
    from animate import animate_files
    total = _check(settings, bench, checkpoint)
    animate_files(settings, bench.model(checkpoint).renderer, watch=bench.counter(total))
    return Animated(settings.result_video, settings.save_motion, total)


class Compared(NamedTuple):
    """Paths of what `--mode compare` made, how many frames, and by which rule some were chosen for print."""
    video: str
    figure: str
    pdf: str
    frames: int
    rule: str


def compare(bench, models, files, motion, shown, folder):
    """Compared: a pair through all models, into the folder.

    models: {name: checkpoint}
    files:  (source image, driving video), paths
    motion: motion.settings.Motion
    shown:  {'frames': figures.selection.parse_frames, 'zoom': parse_zoom, 'background': of figures.printed.COLOURS}
    """
    from figures import compare as side_by_side
    from figures.methods import RenderedMethod, case_of_files, largest_cases
    from figures.printed import FigureStyle
    from figures.selection import Zoom
    check_picture(files[0])
    total, zoom, folder = len(check_clip(files[1])), shown['zoom'] and Zoom(shown['zoom']), Path(folder)
    count, methods = bench.counter(total * len(models)), []
    for name, checkpoint in models.items():
        model = bench.model(checkpoint)
        methods.append(RenderedMethod(name, model.renderer, (case_of_files(*files, model.size),), motion, count))
    report = side_by_side.compare(side_by_side.Comparison(
        folder, largest_cases(methods), tuple(methods), shown['frames'], zoom,
        style=FigureStyle(background=shown['background'])))
    video, = (folder / 'videos').iterdir()
    return Compared(str(video), str(folder / 'comparison.png'), str(folder / 'comparison.pdf'), total, report['rule'])


class Faces(NamedTuple):
    """Path of a picture with numbered faces and crops, and how many faces there are in source and driver."""
    picture: str
    source: int
    driving: int


def find_faces(bench, checkpoint, settings):
    """Faces of AnimationSettings with a driving video, before it is animated."""
    from animate import find_faces, looked_at
    from datasets.constant_rate import open_constant_rate
    from datasets.still import Still
    _check(settings, bench, checkpoint)
    source = Still(settings.source) if settings.source_image else open_constant_rate(settings.source)
    driving = open_constant_rate(settings.driving)
    bench.check()
    crops = find_faces([looked_at(source), looked_at(driving)], (settings.source, settings.driving),
                       (*settings.face_index, 0), bench.model(checkpoint).size, settings.preview)
    return Faces(str(settings.preview), *(len(crop.boxes) for crop in crops))


# ---------------------------------------------------------------------------- Inspect

class Frame(NamedTuple):
    """Path of a driving frame, as the model sees it, enlarged so many times; and how many frames there are."""
    picture: str
    enlarged: int
    length: int


def show_frame(bench, checkpoint, driving, index, folder):
    """Frame `index` of a driving video, squeezed into the model's size, into the folder."""
    from datasets.constant_rate import open_constant_rate
    from visualizer import enlarge, save_png
    length, size = len(check_clip(driving)), bench.model(checkpoint).size
    index = min(index, length - 1)
    times = max(1, round(PICTURE / size))
    path = Path(folder) / f'frame-{index}.png'
    save_png(path, enlarge(open_constant_rate(driving, size).read([index])[0], size * times))
    return Frame(str(path), times, length)


def inspect(bench, checkpoint, files, index, shown, folder):
    """Draw the figures of one driving frame into the folder; returns [(path, title)] of the pictures.

    files: (source image, driving video), paths
    shown: {'relative': bool, 'at': (x, y) in the model's pixels or None, 'arrows': bool}
    """
    from animate import squeeze
    from datasets.constant_rate import open_constant_rate
    from datasets.still import read_image
    from figures.inspect import InspectCase, InspectOptions, inspect
    check_picture(files[0])
    length, model = len(check_clip(files[1])), bench.model(checkpoint)
    source, driving = squeeze(read_image(files[0]), open_constant_rate(files[1]), model.size, files)
    case = InspectCase(Path(files[0]).stem, source, driving, [min(index, length - 1)], shown['relative'],
                       same_identity=False)
    inspect(model.renderer.model, [case], folder, device=model.renderer.device, precision=model.renderer.precision,
            options=InspectOptions(shown['at'], shown['arrows'], (driving,), CODE_FRAMES),
            about={'checkpoint': Path(checkpoint).name, 'method': model.config.method})
    return [(str(path), path.stem.removeprefix('01-')) for path in sorted(Path(folder).glob('*.png'))]
