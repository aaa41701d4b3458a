"""Compiled blocks compute what they do otherwise, in several processes, with checkpointing and bf16."""

import torch

from tests.support.compiled import assert_compiled_steps_are_the_same


def test_compiled_blocks_have_no_breaks_and_settle_in_the_first_step():
    assert_compiled_steps_are_the_same(torch.device('cpu'))
