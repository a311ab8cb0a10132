"""How close a rendered picture is to the photo: PSNR and SSIM. Pictures are [H, W, 3] floats in [0, 1], numpy arrays or tensors."""

import numpy as np
import torch

SSIM_WINDOW = 11  # pixels a side of the gaussian window (sigma 1.5) of Wang et al. 2004
SMALLEST_MSE = 1e-10  # equal pictures get 100 dB, a number that can be averaged and written as JSON, where infinity cannot


def quantise(image):
    """Clip `image` to [0, 1] and round it half up to the 256 values of a picture file, as published evaluation protocols do.

    image: floats of any shape. Returns float32 of the same shape, multiples of 1/255. NaN stays NaN.
    """
    scaled = np.clip(np.asarray(image, dtype=np.float64), 0.0, 1.0) * 255.0
    return (np.floor(scaled + 0.5) / 255.0).astype(np.float32)


def psnr(prediction, target):
    """Peak signal-to-noise ratio, -10 log10(mean squared error), in decibel; the peak is 1.

    prediction, target: [H, W, 3] floats in [0, 1]. Returns a float, at most 100 dB; NaN where a value is NaN.
    Raises ValueError where the shapes differ.
    """
    prediction, target = _pair(prediction, target)
    error = torch.mean((prediction.double() - target.double()) ** 2)
    return float(-10.0 * torch.log10(error.clamp_min(SMALLEST_MSE)))


def ssim(prediction, target):
    """Structural similarity with an 11x11 gaussian window and data range 1 (Wang, Bovik, Sheikh, Simoncelli 2004, equation 13).

    The mean over a window round every pixel, the picture being mirrored at its border, as torchmetrics has it. Programs that take only the
    windows that lie inside get a slightly different number.

    prediction, target: [H, W, 3] floats in [0, 1]. Returns a float in [-1, 1]; NaN where a value is NaN and for pictures
    too small to be mirrored (5 pixels or less). Raises ValueError where the shapes differ.
    """
    # Imported here because it takes seconds: only who measures pays.
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction, target = _pair(prediction, target)
    if min(prediction.shape[:2]) <= SSIM_WINDOW // 2:
        return float("nan")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # a quarter of a second a picture on one core
    prediction, target = (image.permute(2, 0, 1)[None].float().to(device) for image in (prediction, target))
    with torch.backends.cudnn.flags(allow_tf32=False):  # variances are small differences of large sums
        return float(structural_similarity_index_measure(prediction, target, data_range=1.0))


def _pair(prediction, target):
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}: they must be equal")
    return prediction, target
