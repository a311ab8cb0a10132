"""scripts/downscale.py: what lies in images_N afterwards, and that nothing does after an error."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from nerf.scene import load_scene
from scene_files import options, ring_scene, write_photo

SCRIPT = ROOT / "scripts" / "downscale.py"


def run(*arguments):
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_photos_keep_names_folders_and_what_the_trainer_would_see(tmp_path):
    root = ring_scene(tmp_path / "a scène")
    write_photo(root / "images" / "sub" / "x y.png", size=(67, 51), mode="RGBA")
    (root / "images" / "notes.txt").write_text("no photo")
    expected = load_scene(options(root, downscale=3))
    status, told = run(root, "--downscale", 3)
    assert status == 0 and "10 photos" in told
    assert names(root / "images_3") == [name for name in names(root / "images") if name != "notes.txt"]
    scene = load_scene(options(root, downscale=3))
    assert np.array_equal(scene.photos.pixels, expected.photos.pixels) and np.array_equal(scene.cameras.sizes, expected.cameras.sizes)
    with Image.open(root / "images_3" / "sub" / "x y.png") as photo:
        assert photo.size == (22, 17) and photo.mode == "RGBA"
    assert not list(root.glob(".*"))


def test_linked_folders_are_entered(tmp_path):
    """But for one that leads back."""
    root = ring_scene(tmp_path / "scene")
    write_photo(tmp_path / "elsewhere" / "deep" / "a.png")
    (root / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root / "images")
    status, told = run(root)
    assert status == 0 and "10 photos" in told and (root / "images_2" / "linked" / "deep" / "a.png").is_file()


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_exif_orientation_keeps_its_meaning(tmp_path, ending):
    """A photo that lies on its side stays so, with the tag that turns it."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / f"a.{ending}", exif=exif)
    assert run(tmp_path)[0] == 0
    with Image.open(tmp_path / "images_2" / f"a.{ending}") as photo:
        small = np.asarray(photo.convert("RGB"))
        assert photo.getexif()[0x0112] == 6 and small.shape == (20, 30, 3)
    assert (small[:, :14] < 20).all() and (small[:, 16:] > 235).all()


def test_nothing_is_overwritten_unasked(tmp_path):
    ring_scene(tmp_path)
    (tmp_path / "images_2").mkdir()
    (tmp_path / "images_2" / "mine").write_text("")
    status, told = run(tmp_path)
    assert status == 1 and "--overwrite" in told and told.count("\n") == 1 and names(tmp_path / "images_2") == ["mine"]
    assert run(tmp_path, "--overwrite")[0] == 0
    assert len(names(tmp_path / "images_2")) == 9 and not list(tmp_path.glob(".*"))


def damaged(root):
    photo = root / "images" / "004.png"
    photo.write_bytes(photo.read_bytes()[:2000])


def empty(root):
    for photo in (root / "images").iterdir():
        photo.unlink()


def absent(root):
    (root / "images").rename(root / "pictures")


def in_the_way(root):
    (root / ".images_2.partial").write_text("")


@pytest.mark.parametrize(("spoil", "number", "said"), [
    (damaged, 2, "004.png: the photo does not open"), (empty, 2, "no photos are there"), (absent, 2, "give the folder that holds images/"),
    (lambda _: None, 16, "pass a smaller number"), (in_the_way, 2, "cannot be written")])  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_left(tmp_path, spoil, number, said):
    ring_scene(tmp_path)
    spoil(tmp_path)
    before = names(tmp_path)
    status, told = run(tmp_path, "--downscale", number)
    assert status == 1 and said in told and told.count("\n") == 1 and names(tmp_path) == before


def test_after_an_error_the_old_photos_stay(tmp_path):
    ring_scene(tmp_path)
    assert run(tmp_path)[0] == 0
    before = names(tmp_path)
    damaged(tmp_path)
    assert run(tmp_path, "--overwrite")[0] == 1 and names(tmp_path) == before
