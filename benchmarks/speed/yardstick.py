"""The yardstick: torchvision's ResNet-50 in fp32, in a process that has nothing of this project in it.

    python -P benchmarks/speed/yardstick.py frame|step [--device cpu|cuda] [--threads N]

Run as a file by benchmarks/speed/turns.py. It imports PyTorch and torchvision alone: what we set for our own processes
(who keeps freed memory, what becomes of denormal numbers) would make it slower or faster than it is by itself, and a
ratio to it flatter or belie us. A line 'turn' on standard input asks for a turn, 'about' for what the process is like;
each is answered by a line of JSON.

frame: one forward pass of one 256 px image    step: one training step of 8 images of 224 px (SGD)
"""

import argparse
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torchvision.models import resnet50

PASSES = {'frame': 5, 'step': 1}      # in a turn, which shall not be too short to be timed beside other programs


def frame(device):
    network, image = resnet50().to(device).eval(), torch.rand(1, 3, 256, 256, device=device)
    return torch.inference_mode()(lambda: network(image))


def step(device):
    network, images = resnet50().to(device), torch.rand(8, 3, 224, 224, device=device)
    optimizer, labels = torch.optim.SGD(network.parameters(), 1e-3), torch.arange(8, device=device)

    def take():
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return take


def turn(work, passes, device):
    """Seconds of one pass: {'work': of the process's CPU time, on a GPU of the wall, 'wall': of the wall}."""
    def now():
        if device.type == 'cuda':
            torch.cuda.synchronize()
            return time.perf_counter(), time.perf_counter()
        return time.process_time(), time.perf_counter()
    begin = now()
    for _ in range(passes):
        work()
    return {name: (after - before) / passes for name, before, after in zip(('work', 'wall'), begin, now())}


def about():
    """What the process is like."""
    tiny = torch.full((1,), 1e-30) * 1e-10
    return {'files': sorted(filter(None, (getattr(module, '__file__', None) for module in sys.modules.values()))),
            'environment': dict(os.environ), 'threads': torch.get_num_threads(), 'denormals': bool(tiny.item() > 0)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=PASSES)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=0, help='of a CPU; default: as many as PyTorch takes')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    work = {'frame': frame, 'step': step}[options.what](device)
    for line in sys.stdin:
        found = about() if line.strip() == 'about' else turn(work, PASSES[options.what], device)
        print(json.dumps(found), flush=True)


if __name__ == '__main__':
    main()
