"""Write ONNX graphs that animate without PyTorch, checked against PyTorch.

    python run.py --mode export --checkpoint model.pt --out onnx
"""

from pathlib import Path

from modes.options import add_model, model_of, refuse_run_folder, run_path


def add_arguments(parser):
    add_model(parser)
    parser.add_argument('--out', help='folder of the graphs; default onnx in the run folder')


def run(options):
    if options.out:
        refuse_run_folder(options, '--out')
    from tools.onnx.export import export
    config, model = model_of(options, 'cpu')
    out = Path(options.out or run_path(options) / 'onnx')
    numbers = export(model, config, out)
    for name, difference in numbers['max_difference'].items():
        print(f'{name}: at most {difference:.2g} from PyTorch')
    for path in sorted(out.iterdir()):
        print(f'{path}: {path.stat().st_size / 1e6:.3g} MB')
