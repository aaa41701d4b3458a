"""Jobs of the worker: picklable functions that render as the command line does.

Modules that are slow to import are imported by the jobs.
"""

from pathlib import Path

from support.errors import UserError
from web.limits import MOST_FRAMES, check_clip, check_picture

EXAMPLES, EXAMPLE_FRAMES = 3, 50
PORTRAIT_SIZE, DRIVER_SIZE = 256, 128
EXAMPLE_SEED = 1_000_000   # of synthetic heads outside of every training set
CODE_FRAMES = 50           # driving frames over which Inspect counts codes
PICTURE = 448              # approximate side of the picture to click into, pixels


def begin(worker, checkpoints, folder):
    """Load all models and render examples into the folder; returns [(path of a portrait, path of a driving video)]."""
    from datasets.synthetic.clips import synthetic_people
    from datasets.video_writer import VideoWriter
    from support.files import make_folder
    from visualizer import save_png
    for checkpoint in checkpoints:
        worker.model(checkpoint)
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


def _check(settings, worker, checkpoint):
    """Check the files of AnimationSettings against the limits; returns the number of frames to render."""
    from motion import template as motion_template
    if settings.source_image:
        check_picture(settings.source_image)
    if settings.source_video:
        check_clip(settings.source_video)
    if settings.driving_video:
        return len(check_clip(settings.driving_video))
    length = len(motion_template.load(settings.driving_motion, worker.model(checkpoint).renderer.model))
    if length > MOST_FRAMES:
        raise UserError(f'{settings.driving_motion}: holds {length} frames; this page takes {MOST_FRAMES} at most')
    return length


def animate(worker, checkpoint, settings):
    """Render AnimationSettings into their existing folder; returns the number of frames."""
    from animate import animate_files
    total = _check(settings, worker, checkpoint)
    animate_files(settings, worker.model(checkpoint).renderer, watch=worker.counter(total))
    return total


def compare(worker, models, files, motion, folder):
    """Compare all models, {name: checkpoint}, on (source image, driving video), in the folder.

    Returns the paths of video, figure and PDF, the number of frames, and the rule that chose those of the figure.
    """
    from figures import compare as side_by_side
    from figures.methods import RenderedMethod, case_of_files, largest_cases
    check_picture(files[0])
    total, folder = len(check_clip(files[1])), Path(folder)
    count, methods = worker.counter(total * len(models)), []
    for name, checkpoint in models.items():
        renderer = worker.model(checkpoint).renderer
        methods.append(RenderedMethod(name, renderer, (case_of_files(*files, renderer.size),), motion, count))
    report = side_by_side.compare(side_by_side.Comparison(folder, largest_cases(methods), tuple(methods)))
    video, = (folder / 'videos').iterdir()
    return str(video), str(folder / 'comparison.png'), str(folder / 'comparison.pdf'), total, report['rule']


def find_faces(worker, checkpoint, settings):
    """Find the faces of AnimationSettings with a driving video.

    Returns the path of a picture with numbered faces and crops, and the number of faces in source and driver.
    """
    from animate import find_faces, looked_at
    from datasets.constant_rate import open_constant_rate
    from datasets.still import Still
    _check(settings, worker, checkpoint)
    source = Still(settings.source) if settings.source_image else open_constant_rate(settings.source)
    driving = open_constant_rate(settings.driving)
    worker.check()
    crops = find_faces([looked_at(source), looked_at(driving)], (settings.source, settings.driving),
                       (*settings.face_index, 0), worker.model(checkpoint).renderer.size, settings.preview)
    return str(settings.preview), *(len(crop.boxes) for crop in crops)


# ---------------------------------------------------------------------------- Inspect

def show_frame(worker, checkpoint, driving, index, folder):
    """Save frame `index` of a driving video at the model's size, enlarged by a factor, in the folder.

    Returns (its path, the factor, the number of frames).
    """
    from datasets.constant_rate import open_constant_rate
    from visualizer import enlarge, save_png
    length, size = len(check_clip(driving)), worker.model(checkpoint).renderer.size
    index = min(index, length - 1)
    times = max(1, round(PICTURE / size))
    path = Path(folder) / f'frame-{index}.png'
    save_png(path, enlarge(open_constant_rate(driving, size).read([index])[0], size * times))
    return str(path), times, length


def inspect(worker, checkpoint, files, index, shown, folder):
    """Draw the figures of one driving frame into the folder; returns [(path, title)] of the pictures.

    files: (source image, driving video), paths
    shown: {'relative': bool, 'at': (x, y) in the model's pixels or None}
    """
    from animate import squeeze
    from datasets.constant_rate import open_constant_rate
    from datasets.still import read_image
    from figures.inspect import InspectCase, inspect
    check_picture(files[0])
    length, model = len(check_clip(files[1])), worker.model(checkpoint)
    source, driving = squeeze(read_image(files[0]), open_constant_rate(files[1]), model.renderer.size, files)
    case = InspectCase(Path(files[0]).stem, source, driving, [min(index, length - 1)], shown['relative'],
                       same_identity=False)
    inspect(model.renderer, [case], folder, at=shown['at'], code_clips=(driving,), code_frames=CODE_FRAMES,
            about={'checkpoint': Path(checkpoint).name, 'method': model.method})
    return [(str(path), path.stem.removeprefix('01-')) for path in sorted(Path(folder).glob('*.png'))]
