"""PSNR, SSIM and rounding against their definitions written out."""

import math

import cv2
import numpy as np
import pytest
import torch

import nerf.metrics
from nerf import metrics
from nerf.metrics import lpips, lpips_missing, psnr, quantise, ssim


def noisy_pair(height=24, width=31, seed=0):
    rng = np.random.default_rng(seed)
    target = cv2.GaussianBlur(rng.random((height, width, 3)), (0, 0), 2.0)
    return np.clip(target + 0.05 * rng.standard_normal(target.shape), 0, 1).astype(np.float32), target.astype(np.float32)


def literal_ssim(a, b):
    """Equation 13 of Wang et al. 2004, a window at a time, over every pixel of the picture mirrored at its border."""
    height, width = a.shape[:2]
    a, b = (np.pad(image.astype(np.float64), ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in (a, b))
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for y in range(height):
            for x in range(width):
                p, q = (image[y:y + 11, x:x + 11, channel] for image in (a, b))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * p * p).sum() - mean_p**2, (window * q * q).sum() - mean_q**2
                covariance = (window * p * q).sum() - mean_p * mean_q
                above = (2 * mean_p * mean_q + 0.01**2) * (2 * covariance + 0.03**2)
                values.append(above / ((mean_p**2 + mean_q**2 + 0.01**2) * (var_p + var_q + 0.03**2)))
    return np.mean(values)


def test_psnr_is_its_definition():
    prediction, target = noisy_pair()
    expected = -10 * math.log10(np.mean((prediction.astype(np.float64) - target.astype(np.float64)) ** 2))
    assert psnr(prediction, target) == pytest.approx(expected, abs=1e-9)
    assert psnr(torch.from_numpy(prediction), torch.from_numpy(target)) == pytest.approx(expected, abs=1e-9)
    assert psnr(np.full((4, 4, 3), 0.6), np.full((4, 4, 3), 0.5)) == pytest.approx(20.0, abs=1e-6)


def test_equal_pictures_have_a_finite_psnr():
    target = noisy_pair()[1]
    assert psnr(target, target) == pytest.approx(100.0)
    assert ssim(target, target) == pytest.approx(1.0, abs=1e-6)


def test_nan_gives_nan():
    prediction, target = noisy_pair()
    prediction[3, 4, 1] = np.nan
    assert math.isnan(psnr(prediction, target))
    assert math.isnan(ssim(prediction, target))


def test_ssim_is_its_definition():
    prediction, target = noisy_pair()
    assert ssim(prediction, target) == pytest.approx(literal_ssim(prediction, target), abs=1e-5)


@pytest.mark.parametrize("pixels", [1, 150, 1000])
def test_ssim_does_not_depend_on_how_much_is_done_at_once(monkeypatch, pixels):
    prediction, target = noisy_pair()
    whole = ssim(prediction, target)
    monkeypatch.setattr(nerf.metrics, "SSIM_AT_ONCE", pixels)
    assert ssim(prediction, target) == pytest.approx(whole, abs=1e-6)


def test_the_data_range_is_one_whatever_the_picture_holds():
    prediction, target = noisy_pair()
    dark = ssim(prediction * 0.1, target * 0.1)
    assert dark == pytest.approx(literal_ssim(prediction * 0.1, target * 0.1), abs=1e-5)
    assert dark > ssim(prediction, target)


def test_pictures_smaller_than_the_window():
    prediction, target = noisy_pair(8, 9)
    assert ssim(prediction, target) == pytest.approx(literal_ssim(prediction, target), abs=1e-4)
    assert math.isnan(ssim(np.zeros((5, 40, 3)), np.zeros((5, 40, 3))))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_shapes_must_agree(measure):
    with pytest.raises(ValueError, match=r"\(20, 20, 3\) and target \(20, 21, 3\)"):
        measure(np.zeros((20, 20, 3)), np.zeros((20, 21, 3)))


def test_quantise_rounds_half_up_and_clips():
    image = np.array([-0.2, 0.0, 0.49 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.49 / 255, 1.0, 1.7, np.inf])
    np.testing.assert_array_equal((quantise(image) * 255).round().cpu(), [0, 0, 0, 1, 2, 3, 254, 255, 255, 255])
    assert quantise(image).dtype == torch.float32
    assert quantise(np.array([np.nan])).isnan().all()


def test_quantise_keeps_every_uint8():
    values = np.arange(256)
    np.testing.assert_array_equal(quantise(values / np.float32(255.0)).cpu(), (values / 255.0).astype(np.float32))


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A machine whose folder of weights is empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metrics._lpips_network.cache_clear()
    yield tmp_path
    metrics._lpips_network.cache_clear()


def test_without_its_weights_lpips_is_a_sentence_and_never_a_download(no_weights, monkeypatch):
    def download(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    missing = lpips_missing()
    assert missing.startswith("LPIPS is not measured: ") and "\n" not in missing


def test_broken_weights_are_a_sentence(no_weights):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    (no_weights / "checkpoints").mkdir()
    (no_weights / "checkpoints" / metrics.LPIPS_WEIGHTS).write_bytes(b"half a file")
    assert "cannot be read" in lpips_missing() and "\n" not in lpips_missing()


def test_lpips_with_weights_on_the_machine(no_weights):
    """VGG's weights are random ones here, whose file is found where torch would have put its download."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    (no_weights / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(models.vgg16(weights=None).state_dict(), no_weights / "checkpoints" / metrics.LPIPS_WEIGHTS)
    assert lpips_missing() is None
    prediction, target = noisy_pair(32, 40)
    near, far = lpips(target * 0.98, target), lpips(prediction, target)
    assert 0 < near < far and lpips(target, target) == pytest.approx(0, abs=1e-6)
    assert far == pytest.approx(lpips(prediction, target))  # nothing is left of one call in the next
    prediction[0, 0] = np.nan
    assert math.isnan(lpips(prediction, target)) and math.isnan(lpips(np.zeros((15, 40, 3)), np.zeros((15, 40, 3))))
    with pytest.raises(ValueError, match="must be equal"):
        lpips(np.zeros((32, 32, 3)), np.zeros((32, 31, 3)))
