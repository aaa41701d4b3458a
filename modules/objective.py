"""Losses and gradients of one training step for any TalkingHead (Sec. 3.3, Eq. 6)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modules.losses import (ADVERSARIAL_FORMS, equivariance, feature_matching, keypoint_distance, landmark_guide,
                            laplacian, region_weights)
from modules.perceptual import VGG19, PerceptualLoss
from modules.talking_head import Generated
from support import distributed
from support.errors import did_you_mean_or_known
from support.ranges import AtLeastZero, NotNegative, Positive, Scale

IMAGE_LOSSES = 'l1', 'laplacian', 'perceptual'      # of the prediction, and times `first_scale` of I_g^1
COMMON_LOSSES = (*IMAGE_LOSSES, 'first_scale', 'adversarial', 'feature_matching',
                 'equivariance_value', 'equivariance_jacobian', 'keypoint_distance',
                 'landmark_guide', 'landmark_heatmap')    # these two need data with a landmark for each keypoint


@dataclass(frozen=True)
class ObjectiveParams:
    loss_weights: dict[str, NotNegative] = field(default_factory=dict)  # common losses and the method's own
    perceptual_scales: tuple[Scale, ...] = (1, 0.5, 0.25, 0.125)
    perceptual_imagenet_range: bool = False  # feed VGG19 its own range; the released code: [-1, 1]
    keypoint_distance_hinge: bool = False    # with gradient; the released code's sign has none
    adversarial: str = 'hinge'               # hinge | lsgan
    adaptive_weight: bool = True             # scale the adversarial loss by VQGAN's balance
    adversarial_start: AtLeastZero = 5001    # last iteration without adversarial training
    region_weight: Positive = 1.0            # of l1 and laplacian at the landmarks `region_landmarks`
    region_landmarks: tuple[AtLeastZero, ...] = ()  # numbers of the landmarks that come with the pairs

    def __post_init__(self):
        if self.adversarial not in ADVERSARIAL_FORMS:
            raise ValueError(f'adversarial={self.adversarial!r}: expected one of {", ".join(ADVERSARIAL_FORMS)}')


@dataclass
class ObjectiveOutput:
    """What the objective computes for one micro-batch.

    total:     scalar whose value is Eq. 6 and whose backward pass gives its gradient
    losses:    unweighted losses, detached scalars by name
    generated: what the model made, with its graph
    gradient_norms: at the last layer, (reconstruction, adversarial); None without adaptive weight
    perceptual_terms: (predictions, levels, layers), detached; None without perceptual loss
    """
    total: Tensor
    losses: dict[str, Tensor]
    generated: Generated
    gradient_norms: tuple[Tensor, Tensor] | None = None
    perceptual_terms: Tensor | None = None


@dataclass
class ImageLosses:
    """Losses on the images that one micro-batch generated.

    losses:      unweighted, detached scalars by name
    gradients:   of the weighted reconstruction losses, at each prediction (B, 3, H, W)
    adversarial: unweighted gradients of the discriminator's losses at the first prediction, by name; {} without
    last_layer:  gradients of reconstruction and adversarial loss at the model's last weight, stacked; None without
                 adaptive weight
    norms, terms: ObjectiveOutput.gradient_norms and perceptual_terms
    """
    losses: dict[str, Tensor]
    gradients: list[Tensor]
    terms: Tensor | None
    adversarial: dict[str, Tensor] = field(default_factory=dict)
    last_layer: Tensor | None = None
    norms: tuple[Tensor, Tensor] | None = None


class Objective(nn.Module):
    """Eq. 6. Holds the model, so that one forward pass of this module is all that a step needs (and DDP wraps)."""

    def __init__(self, model, params, vgg_state=None):
        """vgg_state: torchvision's VGG19 state dict; needed exactly if the perceptual weight is not 0."""
        super().__init__()
        self.model = model
        self.params = params
        self.weights = dict.fromkeys((*COMMON_LOSSES, *model.own_losses), 0.0) | params.loss_weights
        self.register_buffer('region_landmarks', torch.tensor(params.region_landmarks, dtype=torch.long),
                             persistent=False)
        self.perceptual = None
        if needs_vgg(params):
            network = VGG19()
            network.load_state_dict({name: value for name, value in vgg_state.items()
                                     if name in network.state_dict()})
            self.perceptual = PerceptualLoss(network, params.perceptual_scales, params.perceptual_imagenet_range)

    def forward(self, source, driving, transform, landmarks=None, discriminator=None, motion_only=False, image=None):
        """Reconstruct `driving` from `source`, images (B, 3, H, W) in [-1, 1]; returns the ObjectiveOutput.

        transform:     the RandomTransform of this step's equivariance loss
        landmarks:     (B, 2, K, 2) of both images in [-1, 1], from data that has them
        discriminator: given once adversarial training has begun; its parameters must be frozen for this call
        motion_only:   losses are of the source image warped by the coarse flow, and train what computes that flow
        image:         ImageLosses of these pairs where `survey` has computed them
        """
        generate = self.model.move_source if motion_only else self.model
        generated = generate(source, driving, **self._given(landmarks))
        losses = dict(generated.losses)
        losses |= self._keypoint_losses(generated, driving, transform)
        if landmarks is not None:
            losses |= self._guide(source, generated, driving, landmarks)

        # Gradients of image losses are computed at the image ...
        if image is None:
            image = self._image_losses(generated, driving, landmarks, discriminator)
            self.balance([image])
        gradients = list(image.gradients)
        if image.adversarial:
            gradients[0] = gradients[0] + sum(self._adversarial_weight(name, image.losses) * gradient
                                              for name, gradient in image.adversarial.items())

        # ... and backpropagated through the model once, together with its own losses.
        inner = sum(self.weights[name] * loss for name, loss in losses.items())
        value = inner.detach() + self._weighted(image.losses)
        at_images = sum((prediction * gradient).sum()
                        for prediction, gradient in zip(_predictions(generated), gradients))
        total = inner + at_images + (value - inner - at_images).detach()
        losses = {name: loss.detach() for name, loss in (losses | image.losses).items()}
        return ObjectiveOutput(total, losses, generated, image.norms, image.terms)

    def survey(self, source, driving, transform, landmarks=None, discriminator=None):
        """ImageLosses of one micro-batch, without a backward pass through the model; arguments as for `forward`.

        For steps of several micro-batches: survey all, `balance` them, then pass each to `forward`. Only the last layer
        requires gradients meanwhile, so no graph is kept.
        """
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(parameter is self.model.last_weight)
        try:
            generated = self.model(source, driving, **self._given(landmarks))
            return self._image_losses(generated, driving, landmarks, discriminator)
        finally:
            for parameter in trained:
                parameter.requires_grad_()

    def balance(self, parts):
        """Set the adaptive weight from the mean gradients of all micro-batches of a step, a list of ImageLosses."""
        if parts[0].last_layer is None:
            return
        found = sum(part.last_layer for part in parts) / len(parts)
        distributed.add_up(found)
        norms = (found / distributed.world()).flatten(1).norm(dim=1).unbind()
        # VQGAN's balance of the two gradients (CVPR 2021, Eq. 7), clamped to 1 (VQGAN: 1e4) as released.
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1).detach()
        for part in parts:
            part.norms, part.losses['adaptive_weight'] = norms, weight

    def _image_losses(self, generated, driving, landmarks, discriminator):
        regions = None
        if landmarks is not None and self.params.region_landmarks:
            regions = region_weights(landmarks[:, 1, self.region_landmarks], self.params.region_weight,
                                     driving.shape[-2:])
        image = ImageLosses(*self._reconstruction(_predictions(generated), driving, regions))
        if discriminator is not None:
            losses, image.adversarial = self._adversarial(discriminator, generated, driving)
            image.losses |= losses
            if self.params.adaptive_weight:
                image.last_layer = torch.stack([torch.autograd.grad(
                    generated.prediction, self.model.last_weight, gradient, retain_graph=True)[0]
                    for gradient in (image.gradients[0], image.adversarial['adversarial'])]).float()
        return image

    def _keypoint_losses(self, generated, driving, transform):
        losses = {}
        if self.weights['equivariance_value'] or self.weights['equivariance_jacobian']:
            transformed = self.model.keypoints(transform.warp_image(driving))
            value, jacobian = equivariance(generated.driving_keypoints, transformed, transform)
            losses = {'equivariance_value': value, 'equivariance_jacobian': jacobian}
        hinge = self.params.keypoint_distance_hinge
        losses['keypoint_distance'] = sum(keypoint_distance(keypoints.value, hinge) for keypoints in (
            generated.source_keypoints, generated.driving_keypoints))
        return losses

    def _given(self, landmarks):
        """For methods whose keypoints are landmarks, those of both images; other methods detect theirs."""
        if not self.model.landmarks or landmarks is None:
            return {}
        return {'keypoints': [self.model.keypoint_detector.at(value) for value in landmarks.float().unbind(1)]}

    def _guide(self, source, generated, driving, landmarks):
        """Losses of the detected keypoints' distances from landmarks (B, 2, K, 2)."""
        detected = generated.source_keypoints, generated.driving_keypoints
        if self.model.landmarks:
            detected = self.model.keypoints(source), self.model.keypoints(driving)
        found = [landmark_guide(*pair) for pair in zip(detected, landmarks.unbind(1))]
        return {name: sum(losses) / 2 for name, losses in zip(('landmark_guide', 'landmark_heatmap'), zip(*found))}

    def _reconstruction(self, predictions, target, regions=None):
        """IMAGE_LOSSES of each prediction -> (losses by name, gradient at each prediction, perceptual terms).

        regions: (B, 1, H, W) weights of pixels, for l1 and laplacian
        """
        scales = [1.0, self.weights['first_scale']]
        names = ['', 'first_scale_']
        losses, gradients = {}, []
        for name, prediction in zip(names, predictions):
            difference = (prediction.detach() - target).requires_grad_()
            with torch.enable_grad():
                counted = difference if regions is None else difference * regions
                found = {'l1': counted.abs().mean()}
                if self.weights['laplacian']:
                    found['laplacian'] = laplacian(counted)
                weighted = sum(self.weights[loss] * value for loss, value in found.items())
            gradients += torch.autograd.grad(weighted, difference)
            losses |= {f'{name}{loss}': value.detach() for loss, value in found.items()}
        terms = None
        if self.perceptual is not None:
            terms, found = self.perceptual.value_and_gradient(predictions, target)
            losses |= {f'{name}perceptual': term.sum() for name, term in zip(names, terms)}
            gradients = [have + self.weights['perceptual'] * new for have, new in zip(gradients, found)]
        return losses, [scale * gradient for scale, gradient in zip(scales, gradients)], terms

    def _adversarial(self, discriminator, generated, target):
        """The generator's losses on the discriminator's output: (losses, gradients at the prediction), both by name."""
        keypoints = generated.driving_keypoints.map(Tensor.detach)
        leaf = generated.prediction.detach().requires_grad_()
        with torch.enable_grad():
            fake = discriminator(leaf, keypoints)
            form = ADVERSARIAL_FORMS[self.params.adversarial]
            losses = {'adversarial': sum(form.generator(logits) for logits in fake.logits)}
            if self.weights['feature_matching']:
                with torch.no_grad():
                    real = discriminator(target, keypoints)
                losses['feature_matching'] = feature_matching(real.features, fake.features)
        gradients = {name: torch.autograd.grad(loss, leaf, retain_graph=True)[0] for name, loss in losses.items()}
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def _adversarial_weight(self, name, losses):
        """Config weight of the discriminator's loss `name`, times the adaptive weight if it is 'adversarial'."""
        balance = losses.get('adaptive_weight', 1.0) if name == 'adversarial' else 1.0
        return self.weights[name] * balance

    def _weighted(self, image_losses):
        weights = self.weights
        main, first_scale = (sum(weights[name] * image_losses[f'{which}{name}'] for name in IMAGE_LOSSES
                            if f'{which}{name}' in image_losses) for which in ('', 'first_scale_'))
        adversarial = sum(self._adversarial_weight(name, image_losses) * image_losses[name]
                     for name in ('adversarial', 'feature_matching') if name in image_losses)
        return main + weights['first_scale'] * first_scale + adversarial


def _predictions(generated):
    """The images that are compared with the driving image: the prediction, and I_g^1 if the method has one."""
    return [image for image in (generated.prediction, generated.first_scale_prediction) if image is not None]


class DiscriminatorObjective(nn.Module):
    """The discriminator's loss (L_D); holds the discriminator, so that DDP can wrap it."""

    def __init__(self, discriminator, params):
        """params: ObjectiveParams."""
        super().__init__()
        self.discriminator = discriminator
        self.form = ADVERSARIAL_FORMS[params.adversarial]

    def forward(self, driving, generated):
        """Driving images (B, 3, H, W) and their Generated -> (total, losses by name).

        Two passes: batch norm shall not mix real with generated images.
        """
        keypoints = generated.driving_keypoints.map(Tensor.detach)
        real = self.discriminator(driving, keypoints)
        fake = self.discriminator(generated.prediction.detach(), keypoints)
        on_real = sum(self.form.real(logits) for logits in real.logits)
        on_fake = sum(self.form.fake(logits) for logits in fake.logits)
        return on_real + on_fake, {'discriminator_real': on_real.detach(), 'discriminator_fake': on_fake.detach()}


def needs_vgg(params):
    """Whether an objective with these ObjectiveParams needs VGG19, for the perceptual loss."""
    return params.loss_weights.get('perceptual', 0) > 0


def needs_discriminator(params):
    """Whether an objective with these ObjectiveParams ever needs a discriminator."""
    return any(params.loss_weights.get(name, 0) > 0 for name in ('adversarial', 'feature_matching'))


def check_weights(weights, own_losses):
    """Raise ValueError for a weight of no loss; the message names the nearest loss."""
    known = [*COMMON_LOSSES, *own_losses]
    for name in weights:
        if name not in known:
            raise ValueError(f'train_params.objective_params.loss_weights: unknown loss {name}'
                             + did_you_mean_or_known(name, known))
