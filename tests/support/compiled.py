"""Training steps with compiled blocks in two processes, on a CPU or on the GPUs that are there."""

import json
import subprocess

import pytest

from tests.support.agents import in_two_processes
from tests.support.training import without_gloo

# On a CPU `aot_eager`, which traces and differentiates as the default does, without a C++ compiler. PyTorch's limit of
# 8 graphs is lowered to 1: the shapes of this config are fewer than those of a whole one.
STEPS = """
import json, sys
import torch
from torch._dynamo.utils import counters
from modules.pairs import micro_batches
from modules.training_step import build_training_step
from support import distributed
from tests.support.tiny import tiny
from tests.support.training import random_batch

device, *sets = sys.argv[1:]
if device == 'cpu':
    compile = torch.compile
    torch.compile = lambda function: compile(function, backend='aot_eager')
torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = 1, True
device = distributed.start(torch.device(device))
for option, steps in (('false', 1), ('true', 2)):
    config = tiny(*sets, f'train_params.compile={option}')
    step = build_training_step(config, device)
    parts = micro_batches(random_batch(2, seed=distributed.rank()), step.params)
    for number in range(steps):
        result = step(parts, step.first_full_step + number)
        print(json.dumps({'norm': float(result.gradient_norm), 'graphs': counters['stats']['unique_graphs'],
                          'breaks': sum(counters['graph_break'].values())}))
distributed.stop()
"""
# Three scales, the finest four times the flow's, each block of the model at least once.
SIZES = ['model_params.autoencoder_params={channels: [8, 8, 8], res_blocks: 1, norm_groups: 4}',
         *(f'model_params.{name}_codebook_params={{num_codes: 6, code_dim: 8, num_heads: 2, num_layers: 1, '
           f'num_scales: {scales}}}' for name, scales in (('motion', 3), ('appearance', 1))),
         'train_params.precision=bf16', 'train_params.checkpointing=true']


def assert_compiled_steps_are_the_same(device):
    """As uncompiled ones, without graph breaks, and with all graphs compiled in the first step."""
    for process in in_two_processes(STEPS, device.type, *SIZES, stdout=subprocess.PIPE):
        said = [json.loads(line) for line in without_gloo(process.communicate(timeout=600)[0])]
        assert process.returncode == 0
        plain, first, second = said
        assert plain['graphs'] == 0 and first['graphs'] == second['graphs'] > 10 and second['breaks'] == 0
        assert first['norm'] == pytest.approx(plain['norm'], rel=1e-3 if device.type == 'cpu' else 1e-2)
