"""What is measured: an iteration of training, and animated frames."""

from contextlib import ExitStack
from unittest.mock import patch

import torch

from modules.build import build_model
from modules.losses import RandomTransform
from modules.objective import Objective, needs_vgg
from modules.perceptual import VGG19
from modules.training_state import State
from modules.training_step import Pairs, TrainingStep, build_training_step


class Training:
    """One iteration of train.py on random images, once everything takes part."""

    def __init__(self, config, batch, device):
        vgg = VGG19().state_dict() if needs_vgg(config.train_params.objective_params) else None
        self.step = build_training_step(config, device, vgg)
        self.size, self.device = config.model_params.image_size, device
        self.resize(batch)

    def resize(self, batch):
        """Take another number of samples from now on."""
        images = [torch.rand(batch, 3, self.size, self.size, device=self.device) * 2 - 1 for _ in range(2)]
        self.pairs = Pairs(*images, RandomTransform.draw(batch, torch.Generator().manual_seed(0)))

    def __call__(self):
        result = self.step([self.pairs], self.step.first_full_step)
        assert result.finite, 'an iteration that is skipped costs less'

    def stages(self, clock):
        """Work seconds of one iteration by stage."""
        found = {}
        parts = [('networks forward', type(self.step.state.model), 'forward'),
                 ('keypoint losses', Objective, '_keypoint_losses'), ('loss network', Objective, '_reconstruction'),
                 ('discriminator in the generator step', Objective, '_adversarial'),
                 ('adaptive weight', Objective, '_last_layer_norms'), ('backward', TrainingStep, 'backward'),
                 ('discriminator step', TrainingStep, 'discriminate'),
                 ('clipping, optimisers, EMA', State, 'clip_gradients'),
                 ('clipping, optimisers, EMA', TrainingStep, 'update')]
        with ExitStack() as stack:
            for stage, owner, name in parts:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), stage, found, clock)))
            self()
        return found


def timed(function, stage, found, clock):
    def wrapper(*args, **kwargs):
        begin = clock.now()
        result = function(*args, **kwargs)
        found[stage] = found.get(stage, 0) + clock.now()[0] - begin[0]
        return result
    return wrapper


class Animation:
    """A batch of frames of one source."""

    def __init__(self, config, batch, device):
        torch.manual_seed(0)
        size = config.model_params.image_size
        self.model = build_model(config).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.source, self.driving = (torch.rand(count, 3, size, size, device=device) * 2 - 1 for count in (1, batch))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.train_params.precision == 'bf16')
        self.encode()

    @torch.inference_mode()
    def encode(self):
        with self.autocast:
            self.state = self.model.encode_source(self.source)

    @torch.inference_mode()
    def __call__(self):
        with self.autocast:
            return self.model.render(self.state, self.model.keypoints(self.driving)).prediction
