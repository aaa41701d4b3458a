"""Full-reference image metrics: L1, PSNR, SSIM.

All take prediction and target (B, 3, H, W), float in [0, 1], and return one value per frame (B,).
Evaluation compares 8-bit frames, as one sees and saves them: clamp, round to 0..255, divide by 255.
"""

import torch

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5      # pixels
SSIM_C1, SSIM_C2 = 0.01 ** 2, 0.03 ** 2

DEFINITIONS = {
    'l1': 'mean absolute difference over the RGB values in [0, 1]; per frame',
    'psnr': '10 log10(1 / mean squared difference) in dB, RGB in [0, 1]; per frame; '
            'frames equal to the target (infinite PSNR) are counted and left out of the mean',
    'ssim': 'structural similarity, 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, range 1, '
            'valid region, mean of the RGB channels; per frame',
}


def l1(prediction, target):
    """Mean absolute difference; 0 is best."""
    return (prediction - target).abs().flatten(1).mean(1)


def psnr(prediction, target):
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal frames."""
    error = (prediction - target).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(prediction, target):
    """Structural similarity, 1 is best (Wang et al. 2004, and the authors' MATLAB settings).

    Frames must be at least 11 pixels wide and high. Computed in float64: the variances are small
    differences of large numbers, and TF32 would drown them.
    """
    x, y = prediction.double(), target.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x ** 2
    var_y = _blur(y * y) - mean_y ** 2
    covariance = _blur(x * y) - mean_x * mean_y

    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x ** 2 + mean_y ** 2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x):
    """Gaussian mean over the window, where it fits: (B, C, H, W) -> (B, C, H-10, W-10)."""
    # A product with banded matrices: in float64 on a CPU, convolutions take five times as long.
    return _bands(x.shape[-2], x).T @ (x @ _bands(x.shape[-1], x))


def _bands(size, like):
    """(size, size-10) matrix; column i holds the window's weights in rows i..i+10."""
    row = torch.arange(size, dtype=like.dtype, device=like.device)[:, None]
    offset = row - SSIM_WINDOW // 2 - row[:size - SSIM_WINDOW + 1].T
    weights = torch.exp(-offset ** 2 / (2 * SSIM_SIGMA ** 2)) * (offset.abs() <= SSIM_WINDOW // 2)
    return weights / weights.sum(0)
