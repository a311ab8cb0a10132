"""Fuzzer of the readers: damages files of small scenes at random and asserts that each loads or is refused by a UserError.

    python tests/fuzz_readers.py --seconds 600 [--only llff ...] [--seed 0]

Nothing else may come out: no other exception, no load beyond --hang seconds, no memory beyond --gib. Each load runs in a child process that
serves many rounds; what kills the child counts as a find. Prints counts for each reader, and the seed of a round that failed.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nerf.errors import UserError
from nerf.scene import load_scene
from nerf.scene.colmap import read_colmap
from scene_files import (
    options,
    ring_scene,
    ring_transforms,
    save_transforms,
    write_dtu,
    write_llff,
    write_mask,
    write_photo,
)

ODD = [None, "", [], {}, True, -1, 0, 1, 2**31, 2**63, 1e-300, 1e300, -1e300, 10**400, float("nan"), float("inf"), "a\0b", "\ud800", "x" * 5000, "/", "..",
       "images", [[1] * 4] * 4, [["1"] * 4] * 3, [[1e308] * 4] * 4, "OPENCV_FISHEYE", "EQUIRECTANGULAR", "images/000.png", ["images/000.png"]]
NUMBERS = [b"nan", b"inf", b"-1", b"0", b"1e308", b"99999999999999999999", b"0x1", b"", b"\xff", b" ", b"\n", b"#", b"-", b"1e-400"]


def colmap_scene(root):
    ring_scene(root)
    write_mask(root / "masks" / "001.png", np.eye(48, 64) == 0)


def colmap_text_scene(root):
    ring_scene(root, kind=".txt", camera=("OPENCV", 64, 48, [60, 61, 32, 24, 0.01, 0.0, 0.0, 0.0]))


def transforms_scene(root):
    content = ring_transforms(root, head={"fl_x": 60.0, "w": 64, "h": 48, "k1": 0.01, "camera_model": "OPENCV", "ply_file_path": "points.ply",
                                          "aabb_scale": 4, "scale": 0.33, "offset": [0.5, 0.5, 0.5]})
    content |= {"train_filenames": [frame["file_path"] for frame in content["frames"][:6]], "val_filenames": [content["frames"][7]["file_path"]]}
    content["frames"][1]["mask_path"] = "masks/001.png"
    save_transforms(root, content)
    write_mask(root / "masks" / "001.png", np.eye(48, 64) == 0)
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 50\nproperty float x\nproperty float y\nproperty float z\nproperty uchar red\nend_header\n"
    (root / "points.ply").write_bytes(header + np.random.default_rng(0).bytes(50 * 13))


def synthetic_scene(root):
    for split in ("train", "test"):
        ring_transforms(root, f"transforms_{split}.json", 4, f"./{split}", {"camera_angle_x": 0.9}, mode="RGBA")


def llff_scene(root):
    ring_scene(root)
    write_llff(root, read_colmap(root, options(root)))
    shutil.rmtree(root / "sparse")


def dtu_scene(root):
    ring_scene(root)
    write_dtu(root, read_colmap(root, options(root)))
    shutil.rmtree(root / "sparse")
    (root / "images").rename(root / "image")
    write_mask(root / "mask" / "001.png", np.eye(48, 64) == 0)


def photo_scene(root):
    """Photos of every kind, which are damaged rather than what says where they were taken."""
    from PIL import Image

    content = ring_transforms(root, head={"fl_x": 60.0, "w": 64, "h": 48})
    pixels = write_photo(root / "images" / "000.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(pixels)
    kinds = [("a.jpg", photo, {"exif": exif}), ("b.webp", photo, {}), ("c.tif", photo, {"compression": "tiff_lzw", "exif": exif}), ("d.bmp", photo, {}),
             ("e.png", photo.quantize(16), {"exif": exif}), ("f.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}), ("g.gif", photo, {}),
             ("h.jpg", photo, {"progressive": True}), ("i.avif", photo, {})]
    for frame, (name, image, extra) in zip(content["frames"], kinds, strict=True):
        image.save(root / "images" / name, **extra)
        frame["file_path"] = f"images/{name}"
    (root / "images" / "000.png").unlink()
    save_transforms(root, content)


SCENES = {"colmap": colmap_scene, "colmap_text": colmap_text_scene, "transforms": transforms_scene, "synthetic": synthetic_scene, "llff": llff_scene,
          "dtu": dtu_scene, "photos": photo_scene}


def target(kind, root, source):
    """The file of a scene that is damaged: mostly one with cameras."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    cameras = [file for file in files if file.suffix in (".bin", ".txt", ".json", ".npy", ".npz", ".ply") or "mask" in file.parent.name]
    return source.choice(files if kind == "photos" or not cameras or source.random() < 0.1 else cameras)


def damaged(content, source):
    """`content` with some of its bytes changed, cut, repeated or replaced by numbers that are none."""
    content = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 3, 8, 30])):
        if not content:
            break
        at = source.randrange(min(len(content), source.choice([40, 200, 10**9, 10**9, 10**9])))
        match source.choice([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]):
            case 0:
                content[at] = source.randrange(256)
            case 1:
                content[at] ^= 1 << source.randrange(8)
            case 2:
                del content[at:]
            case 3:
                content[at : at + 8] = source.choice([b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), np.float64("nan").tobytes(), np.float64(1e300).tobytes()])
            case 4:
                del content[at : at + source.randrange(1, 40)]
            case 5:
                content[at:at] = content[at : at + source.randrange(1, 2000)]
            case 6:
                content[at : at + source.randrange(1, 10)] = source.choice(NUMBERS)
            case 7:  # a number where one may be, without moving what follows
                at -= (at - len(content)) % 8
                content[at : at + 8] = np.float64(source.gauss(0, 10 ** source.randrange(-3, 6))).tobytes()
    return bytes(content)


def damaged_json(content, source):
    """JSON with values replaced, exchanged, removed or nested."""
    content = copy.deepcopy(content)
    for _ in range(source.choice([1, 1, 2, 4])):
        place = content
        while source.random() < 0.7:
            inner = [value for value in (place.values() if isinstance(place, dict) else place) if isinstance(value, dict | list) and value]
            if not inner:
                break
            place = source.choice(inner)
        key = source.choice(list(place)) if isinstance(place, dict) else source.randrange(len(place))
        place[key] = source.choice([copy.deepcopy(source.choice(ODD)), content.get("frames"), source.random() * 10 ** source.randrange(-20, 20)])
    return json.dumps(content, default=str) if source.random() < 0.98 else "[" * 200_000


def damage(kind, root, source):
    for _ in range(source.choice([1, 1, 1, 2])):
        file = target(kind, root, source)
        whole = file.read_bytes()
        if source.random() < 0.03:
            file.unlink()
        elif file.suffix == ".json" and source.random() < 0.7:
            with contextlib.suppress(ValueError, RecursionError, AttributeError, IndexError):  # damaged before
                file.write_text(damaged_json(json.loads(whole), source), encoding="utf-8", errors="surrogatepass")
        else:
            file.write_bytes(damaged(whole, source))


def one_round(kind, pristine, root, seed, hang):
    """'loads', 'refused', or the text of what went wrong."""
    source = random.Random(seed)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)
    damage(kind, root, source)
    changes = {"downscale": source.choice([1, 1, 2]), "enable_cam_near_far": source.random() < 0.3, "contract": source.random() < 0.2}
    signal.setitimer(signal.ITIMER_REAL, hang)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            scene = load_scene(options(root, data_format="auto", image_cache="cpu", **changes))
        for array in (scene.cameras.poses, scene.cameras.intrinsics, scene.cameras.near, scene.aabb):
            assert np.isfinite(array).all()
        "".join(scene.notes).encode()  # they are printed
        return "loads"
    except UserError as error:
        message = str(error)
        return "refused" if len(message) < 12_000 and "\n" not in message.strip() else f"a message of {len(message)} characters: {message[:300]!r}"
    except BaseException:  # noqa: BLE001 - everything else is a find, a MemoryError and an alarm too
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(kind, seconds, seed, hang=10.0, gib=2.0, report=print):
    """Rounds, loads, refusals and finds of one reader. Children inherit what is imported; a limit on their memory counts from there."""
    with tempfile.TemporaryDirectory() as folder:
        pristine, root = Path(folder) / "pristine", Path(folder) / "scène à 1"
        SCENES[kind](pristine)
        counts, stop = {"loads": 0, "refused": 0, "finds": 0}, time.monotonic() + seconds
        while time.monotonic() < stop:
            seed = _child(kind, pristine, root, seed, stop, hang, gib, counts, report)
    report(f"{kind}: {counts['loads'] + counts['refused'] + counts['finds']} rounds, {counts['loads']} load, {counts['refused']} refused, {counts['finds']} finds")
    return counts


def _child(kind, pristine, root, seed, stop, hang, gib, counts, report):
    """Rounds in a child until the time is up or one ends it; returns the seed to go on with."""
    there, here = os.pipe()
    child = os.fork()
    if not child:
        _serve(kind, pristine, root, seed, stop, hang, gib, here)
    os.close(here)
    with os.fdopen(there) as lines:
        for line in lines:
            result = json.loads(line)
            seed += 1
            counts["finds" if result not in counts else result] += 1
            if result not in counts:
                report(f"{kind}, seed {seed - 1}:\n{result}")
    _, status = os.waitpid(child, 0)
    if status:
        counts["finds"] += 1
        report(f"{kind}, seed {seed}: the process ended with status {status}")
        seed += 1
    return seed


def _serve(kind, pristine, root, seed, stop, hang, gib, out):
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(gib * 2**30),) * 2)
    signal.signal(signal.SIGALRM, _alarm)
    faulthandler.dump_traceback_later(3 * (stop - time.monotonic()) + 60, exit=True)
    warnings.simplefilter("ignore")
    while time.monotonic() < stop:
        os.write(out, (json.dumps(one_round(kind, pristine, root, seed, hang)) + "\n").encode())
        seed += 1
    os._exit(0)


def _alarm(*_):
    raise TimeoutError("the load hangs")


def main():
    parser = argparse.ArgumentParser(description="Fuzz the readers of scenes.")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader (60)")
    parser.add_argument("--only", nargs="+", choices=SCENES, default=list(SCENES), help="readers (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round (0)")
    parser.add_argument("--hang", type=float, default=10, help="seconds that a load may take (10)")
    parser.add_argument("--gib", type=float, default=2, help="memory that a load may take (2)")
    arguments = parser.parse_args()
    finds = sum(fuzz(kind, arguments.seconds, arguments.seed, arguments.hang, arguments.gib)["finds"] for kind in arguments.only)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
