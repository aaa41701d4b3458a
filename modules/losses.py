"""Losses on keypoints, images and discriminator outputs, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.warp import identity_grid, invert_2x2, sample

BANDS = 3                 # of the Laplacian pyramid
NEAR = 0.2                # landmarks that are closer than this keep their offsets, in units of [-1, 1]
REGION = 0.07             # standard deviation of a region around a landmark, in units of [-1, 1]
MINIMUM_DISTANCE = 0.2    # keypoints should not come closer than this, in units of [-1, 1]


class RandomTransform:
    """A random smooth warp of the plane: affine plus thin-plate spline (FOMM Sec. 3.3, equivariance).

    theta:   (B, 2, 3) affine part
    control: (B, 1, P*P) weights of the splines at a P x P grid of control points

    Positions and Jacobians are fp32, under autocast too: bf16 rounds positions to half a pixel of 256.
    """

    def __init__(self, theta, control):
        self.theta, self.control = theta, control
        side = round(control.shape[-1] ** 0.5)
        self.points = identity_grid((side, side), control).flatten(0, 1)                     # (P*P, 2)

    @classmethod
    def draw(cls, batch, generator, sigma_affine=0.05, sigma_tps=0.005, points=5):
        """Draw `batch` warps from a CPU torch.Generator: theta (B, 2, 3), control (B, 1, P*P); FOMM's values."""
        theta = torch.eye(2, 3) + sigma_affine * torch.randn(batch, 2, 3, generator=generator)
        return cls(theta, sigma_tps * torch.randn(batch, 1, points ** 2, generator=generator))

    def to(self, device):
        return RandomTransform(*(_upload(tensor, device) for tensor in (self.theta, self.control)))

    def warp_coordinates(self, coordinates):
        """Positions (B, M, 2) -> their images (B, M, 2)."""
        with torch.autocast(coordinates.device.type, enabled=False):
            affine = (self.theta[:, None, :, :2] @ coordinates[..., None])[..., 0] + self.theta[:, None, :, 2]
        radius = (coordinates[:, :, None] - self.points).abs().sum(-1)                      # (B, M, P*P), L1 as in FOMM
        bend = (self.control * radius.square() * torch.log(radius + 1e-6)).sum(-1, keepdim=True)
        return affine + bend

    def jacobian(self, coordinates):
        """Derivative of `warp_coordinates` at positions (B, M, 2): (B, M, 2, 2)."""
        offset = coordinates[:, :, None] - self.points                                       # (B, M, P*P, 2)
        radius = offset.abs().sum(-1)
        slope = 2 * radius * torch.log(radius + 1e-6) + radius.square() / (radius + 1e-6)
        bend = (self.control * slope)[..., None] * offset.sign()
        # The spline moves x and y alike, so both rows share one gradient.
        return self.theta[:, None, :, :2] + bend.sum(2)[:, :, None]

    def warp_image(self, image):
        """Warped image (B, 3, H, W), reflecting at the border."""
        size = image.shape[-2:]
        grid = identity_grid(size, image).flatten(0, 1).expand(image.shape[0], -1, -1)
        flow = self.warp_coordinates(grid).unflatten(1, size)
        return sample(image, flow, align_corners=False, padding_mode='reflection')


def _upload(tensor, device):
    """The tensor on `device`; a GPU reads it from pinned memory, so that the host does not wait."""
    device = torch.device(device)
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def laplacian(difference):
    """L1 over the bands of a Laplacian pyramid of an image difference (B, 3, H, W), Lap1 of
    Bojanowski et al. (ICML 2018, arXiv 1707.05776).

    Sides must halve BANDS times. What is coarser than the bands is left to plain L1, which in turn counts eyes, lips
    and edges by their few pixels: a substitute for the perceptual loss without its network.
    """
    total = 0.0
    for _ in range(BANDS):
        coarser = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(coarser, scale_factor=2, mode='bilinear')).abs().mean()
        difference = coarser
    return total


def equivariance(keypoints, transformed, transform):
    """Equivariance losses (value, jacobian), scalars: keypoints should move as the image is warped (FOMM Sec. 3.3).

    keypoints: of the image; transformed: of transform.warp_image(image); both fp32
    """
    value = F.l1_loss(transform.warp_coordinates(transformed.value), keypoints.value)
    with torch.autocast(value.device.type, enabled=False):
        frame = transform.jacobian(transformed.value) @ transformed.jacobian
        identity = torch.eye(2, device=frame.device)
        return value, (identity - invert_2x2(keypoints.jacobian) @ frame).abs().mean()


def keypoint_distance(value, hinge):
    """Penalty on keypoints (B, K, 2) closer to each other than MINIMUM_DISTANCE.

    The released code counts close pairs, 1 - sign(d - 0.2), which has no gradient anywhere. `hinge` asks
    for max(0, 0.2 - d) instead, which does push them apart.
    """
    distance = ((value[:, :, None] - value[:, None]).square().sum(-1) + 1e-8).sqrt()         # (B, K, K)
    # A keypoint is not its own neighbour: the diagonal is out of reach.
    distance = distance + MINIMUM_DISTANCE * torch.eye(value.shape[1], device=value.device)
    if hinge:
        return F.relu(MINIMUM_DISTANCE - distance).mean()
    return (1 - torch.sign(distance - MINIMUM_DISTANCE)).mean()


def landmark_guide(keypoints, landmarks):
    """Losses that guide keypoints to landmarks (B, K, 2), as LivePortrait guides some (arXiv 2407.03168, Sec. 3.2).

    returns: L1 of the positions, plus L1 of the offsets between landmarks that lie close to each other, such as lids;
             cross entropy of the heat maps (B, K, h, w) with Gaussians of 1.5 px, against maps that are right on
             average only
    """
    size = keypoints.heatmap.shape[-2:]
    distance = identity_grid(size, landmarks) - landmarks[:, :, None, None]                  # (B, K, h, w, 2)
    sigma = 3 / (size[-1] - 1)
    wanted = torch.softmax((-0.5 * distance.square().sum(-1) / sigma ** 2).flatten(2), -1)
    entropy = -(wanted * torch.log(keypoints.heatmap.flatten(2) + 1e-8)).sum(-1).mean()
    error = keypoints.value - landmarks                                                      # (B, K, 2)
    near = (landmarks[:, :, None] - landmarks[:, None]).square().sum(-1) < NEAR ** 2          # (B, K, K)
    offsets = ((error[:, :, None] - error[:, None]).abs().mean(-1) * near).sum() / near.sum()
    return error.abs().mean() + offsets, entropy


def region_weights(landmarks, weight, size):
    """Weights of pixels (B, 1, H, W): `weight` at landmarks (B, K, 2), 1 far from them, Gaussian in between."""
    distance = identity_grid(size, landmarks) - landmarks[:, :, None, None]                  # (B, K, H, W, 2)
    near = torch.exp(-0.5 * distance.square().sum(-1) / REGION ** 2).amax(1, keepdim=True)
    return 1 + (weight - 1) * near


class AdversarialForm(NamedTuple):
    """Losses of a discriminator's logits, scalars: for the generator; for itself, on real and on generated images."""
    generator: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


ADVERSARIAL_FORMS = {
    # Hinge (Lim and Ye, arXiv 1705.02894), the released code's and VQGAN's.
    'hinge': AdversarialForm(generator=lambda logits: -logits.mean(),
                             real=lambda logits: F.relu(1 - logits).mean(),
                             fake=lambda logits: F.relu(1 + logits).mean()),
    # Least squares (Mao et al., ICCV 2017), FOMM's: real shall be 1, generated 0.
    'lsgan': AdversarialForm(generator=lambda logits: (1 - logits).square().mean(),
                             real=lambda logits: (1 - logits).square().mean(),
                             fake=lambda logits: logits.square().mean()),
}


def feature_matching(real, fake):
    """Mean absolute difference of a discriminator's features on real and generated images, summed over layers.

    real, fake: lists of (B, C, h, w), see DiscriminatorOutput (pix2pixHD, CVPR 2018, Sec. 3.2)
    """
    return sum(F.l1_loss(theirs, ours) for theirs, ours in zip(real, fake, strict=True))
