"""One training step's losses and gradients for any TalkingHead (Sec. 3.3, Eq. 6)."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modules.losses import equivariance, hinge_discriminator, hinge_generator, keypoint_distance
from modules.perceptual import VGG19, PerceptualLoss
from modules.talking_head import Generated

COMMON_LOSSES = ('l1', 'perceptual', 'coarse', 'adversarial',
                 'equivariance_value', 'equivariance_jacobian', 'keypoint_distance')


@dataclass(frozen=True)
class ObjectiveParams:
    loss_weights: dict[str, float] = field(default_factory=dict)    # common losses and the method's own, all of them
    perceptual_scales: tuple[float, ...] = (1, 0.5, 0.25, 0.125)
    perceptual_imagenet_range: bool = False      # feed VGG19 its own range; the released code feeds it [-1, 1]
    keypoint_distance_hinge: bool = False        # a hinge with gradient; the released code's sign has none
    adversarial_start: int = 5001                # last iteration without adversarial training


@dataclass
class Step:
    """One generator step.

    total:     scalar whose value is Eq. 6 and whose backward pass gives its gradient
    losses:    unweighted losses, detached scalars by name
    generated: what the model made, with its graph
    gradient_norms: at the last layer, (reconstruction, adversarial); None before adversarial training
    perceptual_terms: (predictions, levels, layers), detached; None without perceptual loss
    """
    total: Tensor
    losses: dict[str, Tensor]
    generated: Generated
    gradient_norms: tuple[Tensor, Tensor] | None = None
    perceptual_terms: Tensor | None = None


class Objective(nn.Module):
    """Eq. 6. Holds the model, so that one forward pass of this module is all that a step needs (and DDP wraps)."""

    def __init__(self, model, params, vgg_state=None):
        """vgg_state: torchvision's VGG19 state dict; needed exactly if the perceptual weight is not 0."""
        super().__init__()
        self.model = model
        self.params = params
        self.weights = params.loss_weights
        self.perceptual = None
        if needs_vgg(params):
            network = VGG19(params.perceptual_imagenet_range)
            network.load_state_dict({name: value for name, value in vgg_state.items()
                                     if name in network.state_dict()})
            self.perceptual = PerceptualLoss(network, params.perceptual_scales)

    def forward(self, source, driving, transform, discriminator=None):
        """Rebuild `driving` from `source`, images (B, 3, H, W) in [-1, 1].

        transform:     the RandomTransform of this step's equivariance loss
        discriminator: given once adversarial training has begun; its parameters must be frozen for this call
        """
        generated = self.model(source, driving)
        losses = dict(generated.losses)
        losses |= self._keypoint_losses(generated, driving, transform)

        # Losses on images meet the networks at the image: their gradient is taken there once ...
        predictions = [generated.prediction]
        if generated.coarse_prediction is not None:
            predictions.append(generated.coarse_prediction)
        image_losses, gradients, terms = self._reconstruction(predictions, driving)
        norms = None
        if discriminator is not None:
            adversarial, gradient = self._adversarial(discriminator, generated.prediction)
            image_losses['adversarial'] = adversarial
            norms = self._last_layer_norms(generated.prediction, gradients[0], gradient)
            image_losses['adaptive_weight'] = adaptive_weight(*norms)
            gradients[0] = gradients[0] + self.weights['adversarial'] * image_losses['adaptive_weight'] * gradient

        # ... and sent down the model once, together with the losses that live inside of it.
        inner = sum(self.weights[name] * loss for name, loss in losses.items())
        value = inner.detach() + self._weighted(image_losses)
        carried = sum((prediction * gradient).sum() for prediction, gradient in zip(predictions, gradients))
        total = inner + carried + (value - inner - carried).detach()
        losses = {name: loss.detach() for name, loss in (losses | image_losses).items()}
        return Step(total, losses, generated, norms, terms)

    def _keypoint_losses(self, generated, driving, transform):
        transformed = self.model.keypoints(transform.warp_image(driving))
        value, jacobian = equivariance(generated.driving_keypoints, transformed, transform)
        hinge = self.params.keypoint_distance_hinge
        distance = sum(keypoint_distance(keypoints.value, hinge)
                       for keypoints in (generated.source_keypoints, generated.driving_keypoints))
        return {'equivariance_value': value, 'equivariance_jacobian': jacobian, 'keypoint_distance': distance}

    def _reconstruction(self, predictions, target):
        """L1 and perceptual losses of each prediction -> (losses by name, gradient at each prediction, terms)."""
        scales = [1.0, self.weights['coarse']]
        names = ['', 'coarse_']
        losses, gradients = {}, []
        for name, prediction in zip(names, predictions):
            difference = prediction.detach() - target
            losses[f'{name}l1'] = difference.abs().mean()
            gradients.append(self.weights['l1'] * difference.sign() / difference.numel())
        terms = None
        if self.perceptual is not None:
            terms, found = self.perceptual.value_and_gradient(predictions, target)
            losses |= {f'{name}perceptual': term.sum() for name, term in zip(names, terms)}
            gradients = [have + self.weights['perceptual'] * new for have, new in zip(gradients, found)]
        return losses, [scale * gradient for scale, gradient in zip(scales, gradients)], terms

    @staticmethod
    def _adversarial(discriminator, prediction):
        leaf = prediction.detach().requires_grad_()
        with torch.enable_grad():
            loss = hinge_generator(discriminator(leaf))
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def _last_layer_norms(self, prediction, *gradients):
        """Norms that gradients at the prediction have at the last layer's weight, over the global batch."""
        found = torch.stack([torch.autograd.grad(prediction, self.model.last_weight, gradient, retain_graph=True)[0]
                             for gradient in gradients]).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
            found /= dist.get_world_size()
        return found.flatten(1).norm(dim=1).unbind()

    def _weighted(self, image_losses):
        weights = self.weights
        main = sum(weights[name] * image_losses[name] for name in ('l1', 'perceptual') if name in image_losses)
        coarse = sum(weights[name] * image_losses[f'coarse_{name}'] for name in ('l1', 'perceptual')
                     if f'coarse_{name}' in image_losses)
        total = main + weights['coarse'] * coarse
        if 'adversarial' in image_losses:
            total = total + weights['adversarial'] * image_losses['adaptive_weight'] * image_losses['adversarial']
        return total


class DiscriminatorObjective(nn.Module):
    """The discriminator's hinge loss; holds the discriminator, so that DDP can wrap it."""

    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real, fake):
        """Images (B, 3, H, W) -> (total, losses by name). Two passes: batch norm shall not mix real with fake."""
        on_real, on_fake = hinge_discriminator(self.discriminator(real), self.discriminator(fake.detach()))
        return on_real + on_fake, {'discriminator_real': on_real.detach(), 'discriminator_fake': on_fake.detach()}


def adaptive_weight(reconstruction_norm, adversarial_norm):
    """VQGAN's balance of the two gradients at the last layer, clamped to at most 1 (VQGAN: 1e4) as released."""
    return (reconstruction_norm / (adversarial_norm + 1e-4)).clamp(0, 1).detach()


def needs_vgg(params):
    """Whether an objective with these ObjectiveParams looks at images through VGG19."""
    return params.loss_weights.get('perceptual', 0) > 0


def check_weights(weights, own_losses):
    """Every loss has a weight and every weight a loss, before the first step; ValueError otherwise."""
    known = {*COMMON_LOSSES, *own_losses}
    for problem, names in (('unknown', set(weights) - known), ('missing', known - set(weights))):
        if names:
            raise ValueError(f'train_params.objective_params.loss_weights: {problem} {", ".join(sorted(names))}')
