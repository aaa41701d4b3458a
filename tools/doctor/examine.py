"""Checks that a machine can train: environment, config, data, weights, disk and memory.

Checks run independently: an error in one is a finding, and the others run. Exit codes of `--mode doctor`: 0 nothing
blocks training, 1 something does, 2 the command line is wrong.
"""

import dataclasses
from functools import partial

from support.errors import UserError
from tools.doctor.config import check_config, check_disk, check_memory, check_networks
from tools.doctor.data import check_clips, check_loader, check_people
from tools.doctor.environment import check_device, check_extras, check_versions, check_video
from tools.doctor.finding import BLOCKS, NOTE, Finding, from_error
from tools.doctor.weights import check_checkpoint, check_training_weights

CHECKS = {'versions': check_versions, 'device': check_device, 'video': check_video, 'config': check_config,
          'networks': check_networks, 'training data': partial(check_clips, 'train'),
          'test data': partial(check_clips, 'test'), 'people': check_people, 'loader': check_loader,
          'training weights': check_training_weights, 'checkpoint': check_checkpoint, 'disk': check_disk,
          'memory': check_memory, 'extras': check_extras}
WITHOUT_CONFIG = check_versions, check_device, check_video, check_config, check_extras


def examine(case):
    """All findings about a SetUp, in the order in which they should be dealt with."""
    findings = []
    for name, check in CHECKS.items():
        found = []
        try:
            usable = case.config is not None or check in WITHOUT_CONFIG
            for finding in check(case) if usable else [Finding(NOTE, 'not checked, as the config cannot be used')]:
                found.append(finding)           # one by one: those before an error stay
        except UserError as error:
            found.append(from_error(error))
        except Exception as error:      # a broken set-up may raise anything
            found.append(Finding(
                BLOCKS, f'the check broke: {type(error).__name__}: {" ".join(str(error).split())[:300]}',
                todo='correct what the message names; if it is none of your files or settings, report it'))
        findings += [dataclasses.replace(finding, check=name) for finding in found]
    return findings
