"""Input, findings and report of the doctor."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logger import load_config

OK, NOTE, WARNING, BLOCKS = 'ok', 'note', 'warning', 'blocks'
GIB = 2 ** 30


@dataclass(frozen=True)
class Finding:
    """A result of a check: severity (OK, NOTE, WARNING or BLOCKS, of training), what, where, and what to do."""
    severity: str
    what: str
    where: str = ''
    todo: str = ''
    check: str = ''


@dataclass
class SetUp:
    """The set-up under examination: arguments of the command line, and the config once it is read.

    config_path: None for the config inside of the checkpoint
    run_folder:  into which training would write
    """
    config_path: str | None
    overrides: list[str]
    checkpoint: str | None
    run_folder: Path
    device: torch.device
    config: Any = None
    gpus: int = 1                       # that train together
    gpu_memory: float | None = None     # GiB of each; None for the memory of `device`
    memory: Any = None                  # StepMemory of a training step, once the networks have run

    def load(self, *more):
        """The config, with 'section.key=value' overrides; UserError."""
        return load_config(self.config_path, [*self.overrides, *more], self.checkpoint)

    @property
    def source(self):
        return self.config_path or self.checkpoint

    @property
    def part(self):
        """Pairs that go through the networks together."""
        return -(-self.config.train_params.batch_size // (self.gpus * self.config.train_params.accumulate))

    @property
    def size(self):
        return self.config.model_params.image_size


def from_error(error, severity=BLOCKS):
    what, _, todo = str(error).partition('; ')
    return Finding(severity, what, todo=todo)


# ---------------------------------------------------------------------------- report

def blocked(findings):
    return any(finding.severity == BLOCKS for finding in findings)


def to_do(findings):
    """Advice without repetitions: findings that block training first, then warnings; no notes."""
    ordered = [finding for severity in (BLOCKS, WARNING) for finding in findings if finding.severity == severity]
    return list(dict.fromkeys(f'{_located(finding)} -> {finding.todo}' for finding in ordered if finding.todo))


def _located(finding):
    return finding.what + (f' [{finding.where}]' if finding.where not in finding.what else '')


def as_dict(findings):
    """For machines: {'blocked', 'to_do', 'findings'}."""
    return {'blocked': blocked(findings), 'to_do': to_do(findings),
            'findings': [dataclasses.asdict(finding) for finding in findings]}


def as_text(findings):
    """Text for the user: findings by check, then what to do."""
    lines, last = [], None
    for finding in findings:
        title, last = (finding.check if finding.check != last else ''), finding.check
        todo = f'; {finding.todo}' if finding.todo and finding.severity == NOTE else ''
        lines.append(f'{title:17} {finding.severity:8} {_located(finding)}{todo}')
    steps = to_do(findings)
    lines += ['', 'To do, in this order:' if steps else 'Nothing to do.']
    lines += [f'  {number}. {step}' for number, step in enumerate(steps, 1)]
    lines += ['', 'Training is blocked.' if blocked(findings) else 'Nothing blocks training.']
    return '\n'.join(lines)
