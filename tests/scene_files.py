"""Small scenes written to disk, and the options to load them with: shared by the tests of the readers."""

import json
import struct
from types import SimpleNamespace

import numpy as np
from PIL import Image

from nerf.scene.colmap_records import MODEL_NAMES


def options(path, **changes):
    """Options that load the COLMAP scene `path`, with `changes`."""
    values = {"path": str(path), "data_format": "colmap", "downscale": 1, "scale": -1.0, "offset": (0.0, 0.0, 0.0), "bound": None, "contract": False,
                  "min_near": None, "enable_cam_center": False, "enable_cam_near_far": False, "train_split": "train", "vis_pose": False, "image_cache": "auto", "workspace": "workspace"}
    return SimpleNamespace(**(values | changes))


def write_binary(folder, cameras, images, points):
    """cameras: id -> (model, width, height, parameters); images: (name, camera id, quaternion, translation, xy [k,2], point ids [k]);
    points: id -> xyz."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cameras.bin", "wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for key, (model, width, height, parameters) in cameras.items():
            number = MODEL_NAMES.index(model) if model in MODEL_NAMES else 99
            file.write(struct.pack(f"<IiQQ{len(parameters)}d", key, number, width, height, *parameters))
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", len(images)))
        for i, (name, camera, quaternion, translation, xy, ids) in enumerate(images):
            file.write(struct.pack("<I7dI", i + 1, *quaternion, *translation, camera) + name.encode() + b"\0" + struct.pack("<Q", len(ids)))
            for (x, y), key in zip(xy, ids, strict=True):
                file.write(struct.pack("<ddq", x, y, key))
    with open(folder / "points3D.bin", "wb") as file:
        file.write(struct.pack("<Q", len(points)))
        for key, xyz in points.items():
            file.write(struct.pack("<Q3d3BdQII", key, *xyz, 9, 9, 9, 0.5, 1, 1, 0))


def write_text(folder, cameras, images, points):
    """As write_binary."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cameras.txt", "w") as file:
        file.write("# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n")
        file.writelines(f"{key} {model} {width} {height} {' '.join(repr(float(x)) for x in parameters)}\n" for key, (model, width, height, parameters) in cameras.items())
    with open(folder / "images.txt", "w") as file:
        file.write("# two lines an image\n")
        for i, (name, camera, quaternion, translation, xy, ids) in enumerate(images):
            pose = " ".join(repr(float(x)) for x in (*quaternion, *translation))
            file.write(f"{i + 1} {pose} {camera} {name}\n")
            file.write(" ".join(f"{float(x)!r} {float(y)!r} {key}" for (x, y), key in zip(xy, ids, strict=True)) + "\n")
    with open(folder / "points3D.txt", "w") as file:
        file.writelines(f"{key} {' '.join(repr(float(x)) for x in xyz)} 9 9 9 0.5 1 0\n" for key, xyz in points.items())


def plain_model(model):
    """A colmap_model.Model in the form that write_binary and write_text take."""
    cameras = {key: (camera.model, camera.width, camera.height, list(camera.parameters.values())) for key, camera in model.cameras.items()}
    images = [(image.name, image.camera, image.quaternion, image.translation, image.xy, image.point_ids) for image in model.images]
    return cameras, images, dict(zip(model.point_ids.tolist(), model.points, strict=True))


def ring_model(count=9, camera=("PINHOLE", 64, 48, [60, 61, 32, 24]), radius=3.0, seed=0):
    """`count` cameras in a ring about the origin that look at it (COLMAP's y down is world -z), and 200 points, in write_binary's form."""
    random = np.random.default_rng(seed)
    points = {i + 1: xyz for i, xyz in enumerate(random.normal(size=(200, 3)) * 0.4)}
    images = []
    for i in range(count):
        angle = 2 * np.pi * i / count
        position = radius * np.array([np.cos(angle), np.sin(angle), 0.3])
        forward = -position / np.linalg.norm(position)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        images.append((f"{i:03d}.png", 1, quaternion_of(rotation), -rotation @ position, np.full((200, 2), 5.0), list(points)))
    return {1: camera}, images, points


def quaternion_of(rotation):
    """(w, x, y, z) of rotation [3,3]: the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    return np.linalg.eigh([
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e]])[1][:, -1]


def write_photo(file, size=(64, 48), mode="RGB", seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(file)
    return pixels


def write_mask(file, mask):
    """mask [H,W] bool: False is to be left out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(file)


def ring_scene(root, kind=".bin", place="sparse/0", **model):
    """A COLMAP scene with photos for ring_model; returns `root`."""
    cameras, images, points = ring_model(**model)
    (write_binary if kind == ".bin" else write_text)(root / place, cameras, images, points)
    for i, image in enumerate(images):
        write_photo(root / "images" / image[0], seed=i)
    return root


def ring_transforms(root, name="transforms.json", count=9, folder="images", head=None, radius=3.0, mode="RGB"):
    """A transforms scene with cameras in a ring about the origin, z up; returns its dictionary, which is also written to `root`/`name`."""
    frames = []
    for i in range(count):
        angle = 2 * np.pi * i / count
        back = np.array([np.cos(angle), np.sin(angle), 0.3]) / np.hypot(1, 0.3)
        right = np.array([-np.sin(angle), np.cos(angle), 0])
        matrix = np.eye(4)
        matrix[:3] = np.column_stack([right, np.cross(back, right), back, radius * back])
        frames.append({"file_path": f"{folder}/{i:03d}.png", "transform_matrix": matrix.tolist()})
        write_photo(root / folder / f"{i:03d}.png", mode=mode, seed=i)
    content = {"fl_x": 60.0, "fl_y": 61.0, "cx": 32.0, "cy": 24.0, "w": 64, "h": 48} if head is None else dict(head)
    content["frames"] = frames
    save_transforms(root, content, name)
    return content


def write_llff(root, capture, depths=(1.0, 20.0)):
    """poses_bounds.npy of a Capture without lens distortion, whose photos lie in `root`/images."""
    rows = []
    for pose, (fx, *_), (width, height) in zip(capture.poses, capture.intrinsics, capture.full_sizes, strict=True):
        right, up, back, position = pose.T
        rows.append([*np.column_stack([-up, right, back, position, (height, width, fx)]).ravel(), *depths])
    np.save(root / "poses_bounds.npy", np.array(rows))


def write_dtu(root, capture, centre=(0.0, 0.0, 0.0), radius=1.0, name="cameras_sphere.npz"):
    """The cameras of a Capture without lens distortion, with a unit sphere about `centre`; its photos lie in `root`/image.

    The files' pixels have their centres at whole numbers, hence the half that is taken off."""
    scale = np.diag([radius, radius, radius, 1.0])
    scale[:3, 3] = centre
    matrices = {}
    for i, (pose, (fx, fy, cx, cy)) in enumerate(zip(capture.poses, capture.intrinsics, strict=True)):
        rotation = (pose[:, :3] * [1, -1, -1]).T
        world = np.eye(4)
        world[:3] = [[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]] @ np.column_stack([rotation, -rotation @ pose[:, 3]])
        matrices |= {f"world_mat_{i}": world * (-1) ** i, f"world_mat_inv_{i}": np.linalg.inv(world), f"scale_mat_{i}": scale}
    np.savez(root / name, **matrices)


def save_transforms(root, content, name="transforms.json"):
    (root / name).write_text(json.dumps(content))
