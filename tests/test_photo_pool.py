"""Photos that stay in host memory or on disk: what is drawn from the pool, that it can be repeated, and the files in the cache."""

import dataclasses
import errno
import os
import pwd
import time

import numpy as np
import pytest
import torch

from conftest import DEVICES, advance
from nerf import photo_pool
from nerf.errors import UserError
from nerf.photo_pool import PhotoPool
from nerf.scene import load_scene, photo_cache
from nerf.scene.masks import masks_of
from nerf.scene.photos import Photos, load_photos
from scene_files import options, ring_scene, write_photo
from test_rays import SIZES, source_of, three_photos


class OnDisk(Photos):
    """Photos in memory that say that they are not."""

    on_disk = True


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder, of this test alone; free of what the test before left."""
    folder = tmp_path / "cache folder"
    monkeypatch.setenv("HSM_PHOTO_CACHE", str(folder))
    return folder


@pytest.fixture
def small_pool(monkeypatch):
    """A pool of few short runs, so that photos have many and the pool changes soon."""
    monkeypatch.setattr(photo_pool, "RUN", 16)
    monkeypatch.setattr(photo_pool, "GROUPS", 32)


def pool_of(scene, device="cpu", indices=(0, 1, 2), mixed=True):
    return PhotoPool(scene.photos, np.array(indices), scene.cameras.sizes, mixed, scene.masks, torch.device(device))


def random(n=2000, seed=0, device="cpu"):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)).to(device)


def drawn(pool, step, n=2000, device="cpu"):
    pool.follow(7, step)
    return [values.cpu() for values in pool.draw(random(n, step, device))]


def content(pool):
    """What can be drawn: runs shorter than others keep something behind them."""
    used = torch.arange(pool.run, device=pool.pixels.device) < pool.table[..., 2:3]
    return (pool.pixels * used.flatten(1)[..., None]).cpu(), pool.table.cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_colours_are_those_of_their_pixels(small_pool, device):
    pool = pool_of(three_photos(), device, (0, 2))
    for step in range(5):
        image, xy, colours = drawn(pool, step, device=device)
        assert torch.equal(xy, colours[:, :2] + 0.5) and torch.equal(10 * image, colours[:, 2].long())
        assert set(image.tolist()) == {0, 2}


def masked_photos():
    """Three photos of which a third of the pixels is allowed, and of the last one pixel."""
    images = [np.random.default_rng(k).random((height, width)) < 0.3 for k, (width, height) in enumerate(SIZES)]
    images[2][:] = False
    images[2][3, 19] = True
    return dataclasses.replace(three_photos(), masks=masks_of(images)), images


@pytest.mark.parametrize("device", DEVICES)
def test_masked_pixels_are_never_drawn_and_all_others_are(small_pool, device):
    scene, images = masked_photos()
    pool, seen = pool_of(scene, device), [np.zeros_like(image) for image in images]
    for step in range(100):
        image, xy, colours = drawn(pool, step, device=device)
        assert torch.equal(xy, colours[:, :2] + 0.5) and torch.equal(10 * image, colours[:, 2].long())
        for photo, picture in enumerate(seen):
            x, y = xy[image == photo].long().T.numpy()
            picture[y, x] = True
    assert all(map(np.array_equal, seen, images))


@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_rays_avoid_masked_pixels(small_pool, cache):
    scene, images = masked_photos()
    scene = dataclasses.replace(scene, photos=OnDisk(scene.photos.pixels, scene.photos.offsets)) if cache == "disk" else scene
    source, _ = source_of(scene, [0, 1, 2], cache=cache)
    assert source.on_device == (cache == "auto")
    for seed in range(5):
        source.fetch(seed)
        rays, target = source.draw(random(500, seed), torch.tensor([500], dtype=torch.int32))
        x, y, _ = (target * 255).round().long().T.numpy()
        assert all(images[photo][row, column] for photo, row, column in zip(rays.image.tolist(), y, x, strict=True))


def test_every_pixel_is_equally_probable(small_pool):
    """Photos first, then pixels: shares of the pixels of each photo against a third over their number."""
    pool, counts = pool_of(three_photos()), [np.zeros(width * height) for width, height in SIZES]
    steps, n = 600, 500
    for step in range(steps):
        image, xy, _ = drawn(pool, step, n)
        for photo, count in enumerate(counts):
            x, y = xy[image == photo].long().T.numpy()
            np.add.at(count, y * SIZES[photo][0] + x, 1)
    for count in counts:
        assert (count > 0).all()
        assert count.sum() / (steps * n) == pytest.approx(1 / 3, abs=0.02)
        assert np.abs(count * len(count) / count.sum() - 1).mean() < 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mixed", [True, False])
def test_a_pool_follows_from_seed_and_step(small_pool, device, mixed):
    scene = three_photos()
    through = pool_of(scene, device, mixed=mixed)
    for step in range(80):
        through.follow(7, step)
    jumped = pool_of(scene, device, mixed=mixed)
    jumped.follow(7, 3)
    jumped.follow(7, 79)
    assert all(map(torch.equal, content(through), content(jumped)))
    assert torch.equal(through.group, jumped.group)
    jumped.follow(8, 79)
    assert not torch.equal(through.table, jumped.table)


def test_one_photo_a_step(small_pool):
    pool = pool_of(three_photos(), mixed=False)
    images = [drawn(pool, step)[0] for step in range(20)]
    assert all((image == image[0]).all() for image in images) and {int(image[0]) for image in images} == {0, 1, 2}


@pytest.mark.gpu
def test_buffers_wait_for_a_busy_device(small_pool):
    """Hundreds of groups are sent while the device is busy with something else: each arrives as it left."""
    scene = three_photos()
    busy, idle = pool_of(scene, "cuda"), pool_of(scene)
    idle.follow(7, 200)
    torch.cuda._sleep(200_000_000)
    for step in range(150, 201):
        busy.follow(7, step)
    assert all(map(torch.equal, content(busy), content(idle)))


def test_a_resumed_run_draws_the_same(small_pool, make_trainer, tmp_path):
    flags = "--image_cache", "disk", "--hsm"
    whole = make_trainer(*flags, folder=tmp_path / "a")
    advance(whole, 40)
    first = make_trainer(*flags, folder=tmp_path / "b")
    advance(first, 20)
    first.save()
    second = make_trainer(*flags, "--seed", "9", folder=tmp_path / "c")
    second.resume(next((tmp_path / "b" / "checkpoints").glob("step_*.pth")))
    advance(second, 20)
    for mine, other in zip(second.model.field.parameters(), whole.model.field.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(second.step.numbers, whole.step.numbers) and not whole.step.source.on_device


def test_training_from_disk_learns(make_trainer):
    assert advance(make_trainer("--image_cache", "disk", "--hsm"), 200).squared_error < 10**-1.5


# ---- the cache


def test_photos_on_disk_are_those_in_memory(tmp_path, cache, capsys):
    ring_scene(tmp_path / "scene")
    write_photo(tmp_path / "scene" / "images" / "003.png", size=(32, 24), mode="RGBA", seed=33)
    memory, disk = (load_scene(options(tmp_path / "scene", image_cache=kind)) for kind in ("cpu", "disk"))
    assert disk.photos.on_disk and len(disk.photos) == len(memory.photos) == 9 and disk.photos.channels == 4
    for i, size in enumerate(memory.cameras.sizes):
        assert np.array_equal(disk.photos.image(i, size), memory.photos.image(i, size))
    assert "decoding" in capsys.readouterr().out and len(list(cache.iterdir())) == 1


def test_decoded_photos_are_used_again_until_one_changes(tmp_path, cache, capsys):
    ring_scene(tmp_path)
    scene = options(tmp_path, image_cache="disk")
    load_scene(scene), capsys.readouterr()
    load_scene(scene)
    assert "decoded already" in capsys.readouterr().out
    (cache / next(cache.iterdir()).name).write_bytes(b"short")
    load_scene(scene)
    assert "decoded already" not in capsys.readouterr().out
    expected = write_photo(tmp_path / "images" / "003.png", seed=99)
    photos = load_scene(scene).photos
    assert np.array_equal(photos.image(3, (64, 48)), expected) and len(list(cache.iterdir())) == 2


def test_auto_goes_to_disk_where_memory_is_short(tmp_path, monkeypatch):
    ring_scene(tmp_path)
    assert not load_scene(options(tmp_path)).photos.on_disk
    monkeypatch.setattr("nerf.scene.photos.available_memory", lambda: 1000)
    assert load_scene(options(tmp_path)).photos.on_disk


def cached(folder, name, days=0, size=1000):
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - 86_400 * days,) * 2)
    return path


def test_leftovers_and_old_files_are_removed_and_used_ones_stay(tmp_path, cache):
    ring_scene(tmp_path)
    held = load_scene(options(tmp_path, image_cache="disk"))
    used = next(cache.iterdir())
    os.utime(used, (0, 0))
    left, old, recent, other = cached(cache, ".a.1.partial.pixels"), cached(cache, "b.pixels", 30), cached(cache, "c.pixels", 1), cached(cache, "mine.txt", 90)
    load_scene(options(tmp_path, image_cache="disk", downscale=2))
    assert not left.exists() and not old.exists() and recent.exists() and other.exists() and used.exists()
    assert held.photos.image(0, (64, 48)).shape == (48, 64, 3)


def test_a_full_disk_is_a_sentence(tmp_path, cache, monkeypatch):
    ring_scene(tmp_path)
    cache.mkdir()
    idle = cached(cache, "a.pixels", 1)
    usage = type("Usage", (), {"free": photo_cache.LEFT_FREE + 1000})
    monkeypatch.setattr(photo_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GiB of disk in .*cache folder.*HSM_PHOTO_CACHE"):
        load_scene(options(tmp_path, image_cache="disk"))
    assert idle.exists()  # removing it would not have been enough

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(usage, "free", 2**40)
    monkeypatch.setattr(photo_cache.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device.*HSM_PHOTO_CACHE"):
        load_scene(options(tmp_path, image_cache="disk"))
    assert [path.name for path in cache.iterdir()] == ["a.pixels"]


def test_unused_files_make_room(tmp_path, cache, monkeypatch):
    ring_scene(tmp_path)
    cache.mkdir()
    older, newer = cached(cache, "a.pixels", 2, 90_000), cached(cache, "b.pixels", 1)
    needed = 9 * 64 * 48 * 3
    free = iter([needed - 50_000, needed - 50_000, needed])
    monkeypatch.setattr(photo_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": photo_cache.LEFT_FREE + next(free)}))
    load_scene(options(tmp_path, image_cache="disk"))
    assert not older.exists() and newer.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, cache):
    ring_scene(tmp_path)
    cache.write_text("a file")
    with pytest.raises(UserError, match="HSM_PHOTO_CACHE"):
        load_scene(options(tmp_path, image_cache="disk"))


def test_a_photo_that_does_not_decode_leaves_nothing(tmp_path, cache):
    ring_scene(tmp_path)
    photo = tmp_path / "images" / "004.png"
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(UserError, match="004.png"):
        load_scene(options(tmp_path, image_cache="disk"))
    assert not list(cache.iterdir())


def test_a_file_that_shrinks_is_a_sentence_not_a_crash(tmp_path, cache):
    write_photo(tmp_path / "a.png")
    photos = load_photos([tmp_path / "a.png"], np.array([[64, 48]]), False, "disk")
    os.truncate(next(cache.iterdir()), 100)
    pool = PhotoPool(photos, [0], np.array([[64, 48]]), True, None, torch.device("cpu"))
    with pytest.raises(UserError, match="end too early"):
        pool.follow(0, 0)


def test_a_user_without_a_home(tmp_path, monkeypatch):
    """As in a container, where the user may have no entry either."""
    def no_entry(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("HSM_PHOTO_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(UserError, match="no home folder .*; name a folder in HSM_PHOTO_CACHE"):
        load_scene(options(ring_scene(tmp_path), image_cache="disk"))
