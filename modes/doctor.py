"""Check that this machine can train. Exit code 0: nothing blocks training; 1: something does.

    python run.py --mode doctor --config config/vox-256.yaml

--config, --checkpoint, --set, --log_dir and --run_name are those of --mode train.
"""

import json

from modes.options import add_device, add_model, process_group, training_config, training_path


def add_arguments(parser):
    add_model(parser, 'none')
    add_device(parser)
    parser.add_argument('--gpu_memory', '--gpu-memory', type=float, metavar='GIB',
                        help='memory of each GPU: print what fits; this machine needs no GPU')
    parser.add_argument('--gpus', type=int, metavar='N',
                        help="number of GPUs that train together; default: those of this machine")
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')


def run(options):
    import torch
    with process_group(options.device) as device:
        from tools.doctor.examine import examine
        from tools.doctor.finding import SetUp, as_dict, as_text, blocked
        gpus = options.gpus or max(1, torch.cuda.device_count())
        findings = examine(SetUp(training_config(options), options.set, options.checkpoint, training_path(options),
                                 device, gpus=gpus, gpu_memory=options.gpu_memory))
        print(json.dumps(as_dict(findings), indent=1) if options.json else as_text(findings))
        return int(blocked(findings))
