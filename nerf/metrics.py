"""How close a rendered picture is to the photo: PSNR, SSIM and LPIPS. Pictures are [H, W, 3] floats in [0, 1], numpy arrays or tensors on any device.

All is computed on the GPU where there is one: a quarter of a second a picture on one core."""

import functools
import importlib.util
import pickle
from pathlib import Path

import torch

SSIM_WINDOW = 11  # pixels a side of the gaussian window (sigma 1.5) of Wang et al. 2004
SSIM_AT_ONCE = 2**20  # pixels, in whole rows; each takes about a kilobyte while it is measured
LPIPS_WEIGHTS = "vgg16-397923af.pth"  # torchvision's name of the network below LPIPS; torchmetrics brings what lies above it
SMALLEST_LPIPS = 16  # pixels a side: the network halves a picture four times
SMALLEST_MSE = 1e-10  # equal pictures get 100 dB, a number that can be averaged and written as JSON, where infinity cannot


def quantise(image):
    """Clip `image` to [0, 1] and round it half up to the 256 values of a picture file, as published evaluation protocols do.

    image: floats of any shape. Returns a float32 tensor of the same shape, multiples of 1/255. NaN stays NaN.
    """
    scaled = to_device(image).double().clamp(0.0, 1.0) * 255.0
    return ((scaled + 0.5).floor() / 255.0).float()


def psnr(prediction, target):
    """Peak signal-to-noise ratio, -10 log10(mean squared error), in decibel; the peak is 1.

    prediction, target: floats in [0, 1] of one shape, [H, W, 3] or rows [k, 3]. Returns a float, at most 100 dB; NaN where a value is NaN.
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
    height, width = prediction.shape[:2]
    reach = SSIM_WINDOW // 2
    if min(height, width) <= reach:
        return float("nan")
    rows, total = max(1, SSIM_AT_ONCE // width), 0.0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # variances are small differences of large sums
        for first in range(0, height, rows):  # bands of rows, each with what the windows of its own rows reach
            begin, last = max(0, first - reach), min(first + rows, height)
            band = (_as_batch(picture[begin : last + reach]) for picture in (prediction, target))
            _, each = structural_similarity_index_measure(*band, data_range=1.0, return_full_image=True)
            total = total + each[..., first - begin : last - begin, :].double().sum()
    return float(total) / prediction.numel()


def lpips_missing():
    """Why `lpips` cannot be measured on this machine, as a sentence; None where it can. Nothing is ever downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS  # where torchvision's own download would have put them
    if importlib.util.find_spec("torchvision") is None:
        return "LPIPS is not measured: torchvision is not installed."
    if not weights.is_file():
        return f"LPIPS is not measured: its weights are not on this machine ({weights}), and nothing is downloaded for it."
    try:
        _lpips_network()
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        return f"LPIPS is not measured: {weights} cannot be read ({type(error).__name__}); remove it or replace it."
    return None


def lpips(prediction, target):
    """Learned perceptual image patch similarity on VGG-16 (Zhang, Isola, Efros, Shechtman, Wang 2018), by torchmetrics; less is more alike.

    Only where `lpips_missing` says nothing. prediction, target: [H, W, 3] floats in [0, 1]. Returns a float; NaN where a value is NaN and
    for pictures below 16 pixels a side. Raises ValueError where the shapes differ.
    """
    prediction, target = _pair(prediction, target)
    if min(prediction.shape[:2]) < SMALLEST_LPIPS or not bool(torch.isfinite(prediction).all()):
        return float("nan")
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return float(_lpips_network()(_as_batch(prediction.clamp(0, 1)), _as_batch(target.clamp(0, 1))))


@functools.cache
def _lpips_network():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True).to(_device())


def _as_batch(image):
    """[H, W, 3] -> [1, 3, H, W] float32."""
    return image.permute(2, 0, 1)[None].float()


def to_device(array):
    """An array or tensor as a tensor where pictures are measured."""
    return torch.as_tensor(array).to(_device())


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def _pair(prediction, target):
    prediction, target = to_device(prediction), to_device(target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}: they must be equal")
    return prediction, target
