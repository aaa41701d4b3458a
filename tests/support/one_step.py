"""One training step of a config, with weights and images that depend on names and seeds."""

import torch
import torch.nn.functional as F

from benchmarks.parity import weights
from modules.build import build_objective
from modules.losses import RandomTransform


def take_step(config, source, change=lambda model: None, layout=torch.contiguous_format, device='cpu'):
    """(model with its gradients, ObjectiveOutput), adversarial for the paper's model, 'smac'."""
    with weights.on(device):
        model, discriminator = weights.filled(config, source, with_discriminator=source == 'smac')
        size = config.model_params.image_size
        images = [F.interpolate(2 * weights.images(seeds) - 1, size=size, mode='area') for seeds in ((1, 3), (2, 4))]
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(0)).to(device)
    objective = build_objective(config, model).eval().to(device, memory_format=layout)
    change(model)
    step = objective(*images, transform, discriminator=discriminator and discriminator.requires_grad_(False))
    step.total.backward()
    return model, step


def one_step(config, change=lambda model: None, layout=torch.channels_last, device='cpu'):
    """(prediction, losses, gradient) of the paper's model, on the CPU."""
    model, step = take_step(config, 'smac', change, layout, device)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return step.generated.prediction.detach().cpu(), torch.stack(list(step.losses.values())).cpu(), gradient.cpu()


def assert_same_step(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-4, rtol=1e-3)
    assert (found[2] - wanted[2]).norm() <= 5e-3 * wanted[2].norm()
