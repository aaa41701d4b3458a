"""Reconstruct every test clip from its first frame, and score it.

    python run.py --mode reconstruction --checkpoint model.pt
"""

from modes.options import add_device, add_model, model_of, process_group, run_path


def add_arguments(parser):
    add_model(parser)
    add_device(parser)


def run(options):
    with process_group(options.device) as device:
        run_on(options, device)


def run_on(options, device):
    """Returns the folder of the results; None on processes other than the first."""
    from datasets.build import test_clips
    from evaluation.report import subject_of
    from evaluation.tables import format_table
    from inference import Renderer
    from reconstruction import reconstruct
    config, model = model_of(options, device)
    params = config.reconstruction_params
    clips = test_clips(config.dataset_params, config.model_params.image_size)[:params.num_videos]
    renderer = Renderer(model, device, params.batch_size, config.train_params.precision)
    report = reconstruct(renderer, clips, run_path(options) / 'reconstruction', subject=subject_of(config, model),
                         include_first=params.include_first, save_videos=params.save_videos)
    if report is not None:
        print(format_table(report))
        print('videos, contact_sheet.png, metrics.json, metrics.csv, metrics.md and report.html are in '
              f'{report.folder}')
        return report.folder
