"""Full-reference image metrics: L1, PSNR, SSIM.

All take prediction and target (B, 3, H, W), float in [0, 1], and return one value per frame (B,).
Evaluation compares 8-bit frames, as they are displayed and saved: clamped, rounded to 0..255, divided by 255.
"""

import torch

from metrics.base import Metric

SSIM_K1, SSIM_K2 = 0.01, 0.03


def l1(prediction, target):
    """Mean absolute difference; 0 is best."""
    return (prediction - target).abs().flatten(1).mean(1)


def psnr(prediction, target):
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal frames."""
    error = (prediction - target).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(prediction, target):
    """Structural similarity, 1 is best (Wang et al., IEEE TIP 2004, Eq. 13, and the authors' MATLAB settings).

    Frames must be at least 11 pixels wide and high.
    """
    window = torch.signal.windows.gaussian(11, std=1.5, dtype=torch.float64)
    return _ssim(prediction, target, window / window.sum())


def _ssim(prediction, target, window, value_range=1, spread=1):
    """SSIM in float64, because variances are small differences of large numbers.

    window: (N,) weights along each axis; only positions where the whole window fits count
    spread: factor on variances and covariance
    """
    c1, c2 = (SSIM_K1 * value_range) ** 2, (SSIM_K2 * value_range) ** 2
    x, y = (frames.to('cpu' if frames.device.type == 'mps' else frames.device).double()    # Apple's have no float64
            for frames in (prediction, target))
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    var_x = spread * (_blur(x * x, window) - mean_x ** 2)
    var_y = spread * (_blur(y * y, window) - mean_y ** 2)
    covariance = spread * (_blur(x * y, window) - mean_x * mean_y)

    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x, window):
    """Weighted mean over the window, where it fits: (B, C, H, W) -> (B, C, H-N+1, W-N+1)."""
    # A product with banded matrices: float64 convolutions on a CPU take five times as long.
    return _bands(x.shape[-2], window).to(x).T @ (x @ _bands(x.shape[-1], window).to(x))


def _bands(size, window):
    """(size, size-N+1) matrix; column i holds the window's weights in rows i..i+N-1."""
    offset = torch.arange(size)[:, None] - torch.arange(size - len(window) + 1)
    inside = (offset >= 0) & (offset < len(window))
    return torch.where(inside, window[offset.clamp(0, len(window) - 1)], 0)


class L1(Metric):
    id, column = 'l1.mean_abs', 'L1'
    definition = 'mean absolute difference over pixels and RGB values in [0, 1]; per frame'
    source = 'FOMM, MRFA, MCNet and the paper'

    def __call__(self, generated, driving):
        return l1(generated, driving).cpu().double()


class Psnr(Metric):
    id, column, unit, direction, decimals = 'psnr.rgb', 'PSNR', 'dB', 'higher', 2
    definition = ('10 log10(1 / mean squared difference over pixels and RGB values in [0, 1]); per frame; '
                  'infinite for equal frames')
    source = 'MRFA, MCNet and the paper'

    def __call__(self, generated, driving):
        return psnr(generated, driving).cpu().double()


class Ssim(Metric):
    id, column, direction = 'ssim.gauss11', 'SSIM', 'higher'
    definition = ('structural similarity, 11 x 11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, range 1, '
                  'valid region, mean of the RGB channels; per frame')
    source = 'Wang et al., https://doi.org/10.1109/TIP.2003.819861; the paper'

    def __call__(self, generated, driving):
        return ssim(generated, driving).cpu()


class SsimUniform(Metric):
    id, column, direction = 'ssim.uniform7_range2', 'SSIM range 2', 'higher'
    definition = ('structural similarity, 7 x 7 uniform window, sample covariance, K1 0.01, K2 0.03, range 2 although '
                  'values span 1, which inflates it; mean of the RGB channels; per frame')
    source = 'MCNet, by the defaults of scikit-image before 0.19 for floats'

    def __call__(self, generated, driving):
        window = torch.full((7,), 1 / 7, dtype=torch.float64)
        return _ssim(generated, driving, window, value_range=2, spread=49 / 48).cpu()
