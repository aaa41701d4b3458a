"""All metrics by id; an id stands for one definition.

    metrics, skipped = build(['psnr.rgb', 'lpips.vgg'], device)
    for metric in metrics: metric.start_clip(source)
    scores = metric(generated, driving)         # (B,); a DistributionMetric computes one value from features instead
"""

from metrics.base import Unavailable
from metrics.expression import DenseAkd, Expression
from metrics.face import Akd, AkdEuclidean, Ard
from metrics.fid import FidDriving, FidSource, KidDriving, KidSource
from metrics.identity import Aed, AedEuclidean, AedSource, Csim, CsimDriving
from metrics.image import L1, Psnr, Ssim, SsimUniform
from metrics.jitter import LandmarkJitter, PixelJitter
from metrics.perceptual import LpipsAlex, LpipsAlexUnscaled, LpipsVgg, LpipsVggUnscaled
from support.errors import UserError, did_you_mean_or_known, nearest

CATALOGUE = {metric.id: metric for metric in (
    L1, Psnr, Ssim, SsimUniform, LpipsVgg, LpipsAlex, LpipsVggUnscaled, LpipsAlexUnscaled, FidSource, FidDriving,
    KidSource, KidDriving, Akd, AkdEuclidean, DenseAkd, Aed, AedSource, AedEuclidean, Csim, CsimDriving, Ard,
    Expression, PixelJitter, LandmarkJitter)}


def build(ids, device):
    """The metrics of these ids whose packages and weights are available.

    ids:     keys of CATALOGUE
    returns: list of Metric in the order of the ids, {id: why it is skipped and what to install}
    raises:  UserError for an unknown id; the message suggests the nearest one
    """
    families = {metric.partition('.')[0]: metric for metric in reversed(CATALOGUE)}      # 'akd': the first akd.*
    for name in ids:
        if name not in CATALOGUE:
            close = families.get(nearest(name, [*CATALOGUE, *families]), name)
            raise UserError(f'there is no metric {name}{did_you_mean_or_known(close, CATALOGUE)}')
    metrics, skipped = [], {}
    for name in dict.fromkeys(ids):
        try:
            metrics.append(CATALOGUE[name](device))
        except Unavailable as reason:
            skipped[name] = str(reason)
    return metrics, skipped
