"""Masks: where they are found, how they follow the photos' sizes, what is said of wrong ones, and that a masked pixel is never drawn."""

import numpy as np
import pytest
import torch

import raymarching
from conftest import DEVICES
from nerf.allowed_pixels import AllowedPixels
from nerf.errors import UserError
from nerf.scene import load_scene
from nerf.scene.masks import masks_of
from scene_files import (
    options,
    ring_model,
    ring_scene,
    ring_transforms,
    save_transforms,
    write_binary,
    write_mask,
    write_photo,
)

RANDOM = np.random.default_rng(0)
SIZES = np.array([[64, 48], [30, 20], [16, 50]])


def noise(width, height, share=0.5):
    return RANDOM.random((height, width)) < share


def test_masks_are_what_they_were_made_of():
    images = [noise(*size) for size in SIZES]
    images[1][:] = True
    images[2][:] = False
    images[2][-1, -1] = True
    masks = masks_of(images)
    assert len(masks) == 3 and masks.first[-1] == len(masks.starts)
    for i, image in enumerate(images):
        assert np.array_equal(masks.image(i, SIZES[i]), image)


@pytest.mark.parametrize("name", ["000.png.png", "000.png"])
@pytest.mark.parametrize("make", [ring_scene, ring_transforms])
def test_masks_by_name(tmp_path, name, make):
    make(tmp_path)
    mask = noise(64, 48)
    write_mask(tmp_path / "masks" / name, mask)
    scene = load_scene(options(tmp_path, data_format="auto"))
    assert np.array_equal(scene.masks.image(0, (64, 48)), mask)
    assert all(scene.masks.image(i, (64, 48)).all() for i in range(1, 9))
    share = 100 * (1 - mask.mean()) / 9
    assert any(f"masks for 1 of 9 photos ({tmp_path / 'masks'}): {share:.1f} %" in note for note in scene.notes)
    assert load_scene(options(ring_scene(tmp_path / "other"))).masks is None


def test_masks_follow_the_size_of_photos(tmp_path):
    """One masked pixel masks the reduced pixel that holds it; a smaller mask is spread; masks_2 is taken for images_2."""
    ring_scene(tmp_path)
    mask = np.ones((48, 64), dtype=bool)
    mask[10, 21] = mask[40:, :] = False
    small = np.ones((24, 32), dtype=bool)
    small[5, 10] = False
    write_mask(tmp_path / "masks" / "000.png", mask)
    write_mask(tmp_path / "masks" / "001.png", small)
    expected = np.ones((24, 32), dtype=bool)
    expected[5, 10] = expected[20:] = False
    masks = load_scene(options(tmp_path, downscale=2)).masks
    assert np.array_equal(masks.image(0, (32, 24)), expected)
    assert np.array_equal(masks.image(1, (32, 24)), small)
    assert np.array_equal(load_scene(options(tmp_path)).masks.image(1, (64, 48)), small.repeat(2, 0).repeat(2, 1))
    for i in range(9):
        write_photo(tmp_path / "images_2" / f"{i:03d}.png", size=(32, 24))
    write_mask(tmp_path / "masks_2" / "002.png", small)
    masks = load_scene(options(tmp_path, downscale=2)).masks
    assert masks.image(0, (32, 24)).all() and np.array_equal(masks.image(2, (32, 24)), small)


def test_wrong_masks(tmp_path):
    ring_scene(tmp_path)
    file = tmp_path / "masks" / "003.png"
    write_mask(file, np.ones((64, 48), dtype=bool))
    with pytest.raises(UserError, match=r"003.png: the mask is 48x64 pixels where its photo .*003.png is 64x48"):
        load_scene(options(tmp_path))
    write_mask(file, np.zeros((48, 64), dtype=bool))
    with pytest.raises(UserError, match=r"003.png: the mask leaves no pixel"):
        load_scene(options(tmp_path))
    file.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"masks/003.png: the photo does not open"):
        load_scene(options(tmp_path))
    file.rename(tmp_path / "masks" / "other.png")
    scene = load_scene(options(tmp_path))
    assert scene.masks is None and any("is named after a photo" in note for note in scene.notes)


def test_two_photos_with_one_mask(tmp_path):
    content = ring_transforms(tmp_path)
    write_photo(tmp_path / "images" / "000.jpg")
    content["frames"].append(content["frames"][0] | {"file_path": "images/000.jpg"})
    save_transforms(tmp_path, content)
    write_mask(tmp_path / "masks" / "000.png", np.ones((48, 64), dtype=bool))
    with pytest.raises(UserError, match=r"could be the mask of images/000.jpg and of images/000.png"):
        load_scene(options(tmp_path, data_format="nerf"))
    for name in ("000.png.png", "000.jpg.png"):
        write_mask(tmp_path / "masks" / name, noise(64, 48))
    assert load_scene(options(tmp_path, data_format="nerf")).masks is not None


@pytest.mark.parametrize("stated", ["{root}/images/{name}", "./images/{name}", "../scene/images/{name}", "../elsewhere/images/{name}", "{root}/../elsewhere/images/{name}"])
def test_masks_of_photos_that_are_named_by_another_way(tmp_path, stated):
    """By an absolute path, or by one that leaves the scene: no photo is its own mask."""
    content, mask = ring_transforms(tmp_path / "scene", folder="images/left"), noise(64, 48)
    if "elsewhere" in stated:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "scene" / "images").rename(tmp_path / "elsewhere" / "images")
    for i, frame in enumerate(content["frames"]):
        frame["file_path"] = stated.format(root=tmp_path / "scene", name=f"left/{i:03d}.png")
        write_mask(tmp_path / "scene" / "masks" / "left" / f"{i:03d}.png", mask)
    save_transforms(tmp_path / "scene", content)
    scene = load_scene(options(tmp_path / "scene", data_format="nerf"))
    assert all(np.array_equal(scene.masks.image(i, (64, 48)), mask) for i in range(9))


def test_a_mask_below_a_name_that_begins_with_images(tmp_path):
    """COLMAP's names are below images/, whatever they begin with."""
    cameras, images, points = ring_model()
    images = [(f"images_{'left' if i % 2 else 'right'}/{i // 2:03d}.png", *image[1:]) for i, image in enumerate(images)]
    write_binary(tmp_path / "sparse" / "0", cameras, images, points)
    for i, image in enumerate(images):
        write_photo(tmp_path / "images" / image[0], seed=i)
        write_mask(tmp_path / "masks" / f"{image[0]}.png", noise(64, 48))
    scene = load_scene(options(tmp_path))
    assert any("masks for 9 of 9 photos" in note for note in scene.notes)


def test_every_allowed_pixel_is_drawn_and_no_other():
    images = [noise(*size, 0.3) for size in SIZES]
    images[1][:] = True
    allowed = AllowedPixels(masks_of(images), SIZES, [2, 0, 1], "cpu")
    sizes = SIZES[[2, 0, 1]]
    random = torch.rand(300_000, 2, generator=torch.Generator().manual_seed(0))
    for k, i in enumerate([2, 0, 1]):
        x, y = allowed.pixels(torch.full((len(random),), k), random).T.numpy()
        counts = np.zeros((sizes[k, 1], sizes[k, 0]))
        np.add.at(counts, (y, x), 1)
        assert np.array_equal(counts > 0, images[i])
        expected = len(random) / images[i].sum()
        assert np.abs(counts[images[i]] - expected).max() < 6 * expected**0.5
    edge = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    x, y = allowed.pixels(torch.zeros(2, dtype=torch.int64), edge).T.numpy()
    rows, columns = np.nonzero(images[2])
    assert (x[0], y[0]) == (columns[0], rows[0]) and (x[1], y[1]) == (columns[-1], rows[-1])


def test_large_photo():
    """Beyond 2^24 pixels float32 does not reach every pixel by itself."""
    size = np.array([[8192, 6144]])
    mask = np.ones((6144, 8192), dtype=bool)
    mask[100:6000, 100:8000] = False
    allowed = AllowedPixels(masks_of([mask]), size, [0], "cpu")
    random = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(1))
    aimed = allowed.aim(random, True)
    x, y = (aimed[:, 1:] * torch.tensor([8192.0, 6144.0])).long().T.numpy()
    assert mask[y, x].all() and (aimed < 1).all() and len(np.unique(y * 8192 + x)) > 98_000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mixed", [True, False])
def test_draw_rays_lands_on_allowed_pixels(device, mixed):
    """Photos that are 255 where allowed and 0 elsewhere show which pixels the kernel took."""
    images = [noise(*size, 0.2) for size in SIZES]
    indices = [0, 2, 1]
    allowed = AllowedPixels(masks_of(images), SIZES, indices, device)
    pixels = torch.from_numpy(np.concatenate([images[i].reshape(-1, 1).repeat(3, 1) for i in indices]).astype(np.uint8) * 255)
    lengths = [SIZES[i].prod() for i in indices]
    offsets = torch.from_numpy(np.cumsum([0, *lengths])[:3])
    poses = torch.eye(4)[:3].expand(3, 3, 4).contiguous()
    cameras = poses, torch.full((3, 4), 30.0), torch.zeros(3, 6), torch.zeros(3, dtype=torch.int32), torch.zeros(3), torch.full((3,), 9.0), torch.tensor([-1.0] * 3 + [1.0] * 3)
    tables = pixels, offsets, torch.from_numpy(SIZES[indices]), torch.tensor(indices)
    random = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(2)).to(device)
    count = torch.tensor([len(random)], dtype=torch.int32, device=device)
    *_, image, target = raymarching.draw_rays(allowed.aim(random, mixed), count, *(table.to(device) for table in tables), mixed, *(row.to(device) for row in cameras))
    assert (target == 1).all()
    assert (image.bincount(minlength=3) > 6000).all() if mixed else len(image.unique()) == 1
