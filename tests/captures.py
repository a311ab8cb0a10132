"""Photos and videos made for the tests of scripts/colmap2nerf.py: a textured corner of a room, seen from an arc."""

import contextlib
import sqlite3
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np

SIZE, FOCAL = (400, 300), 360.0


def texture(seed, size=700):
    """[size,size] uint8 with detail of several sizes, which SIFT likes."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size), np.float32)
    for cells in (12, 40, 120):
        total += cv2.resize(random.normal(size=(cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def arc_cameras(count, step=0.08):
    """World-to-camera [count,3,4] (x right, y down, z forward) of cameras on an arc that look at the corner at the origin, z up."""
    poses = []
    for i in range(count):
        angle = -np.pi / 4 + step * (i - (count - 1) / 2)
        centre = np.array([3 * np.cos(angle), 3 * np.sin(angle), 1.2 + 0.12 * (i % 3)]) * (1, -1, 1)
        forward = np.array([0.5, 0.5, 0.5]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        poses.append(np.column_stack([rotation, -rotation @ centre]))
    return np.stack(poses)


def draw_corner(pose):
    """The picture [H,W] uint8 that a pinhole at `pose` (world to camera) takes of the floor and two walls of a room, 2 units long each."""
    width, height = SIZE
    camera = np.array([[FOCAL, 0, width / 2 - 0.5], [0, FOCAL, height / 2 - 0.5], [0, 0, 1]])
    picture = np.full((height, width), 20, np.uint8)
    for seed, (u, v) in enumerate((((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, 1)), ((0, 1, 0), (0, 0, 1)))):
        surface = texture(seed)
        scale = 2 / len(surface)
        plane = camera @ np.column_stack([scale * pose[:, :3] @ u, scale * pose[:, :3] @ v, pose[:, 3]])
        drawn = cv2.warpPerspective(surface, plane, SIZE, flags=cv2.INTER_AREA)
        inside = cv2.warpPerspective(np.full_like(surface, 255), plane, SIZE, flags=cv2.INTER_NEAREST) > 0
        picture[inside] = drawn[inside]
    return picture


def photograph_corner(folder, count, name="{:03d}.png", step=0.08):
    """Writes `count` photos to `folder`; returns their names and world-to-camera poses."""
    poses = arc_cameras(count, step)
    names = [name.format(i) for i in range(count)]
    for file, pose in zip(names, poses, strict=True):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode((folder / file).suffix, draw_corner(pose))
        (folder / file).write_bytes(encoded.tobytes())
    return names, poses


def write_video(file, frames, fps=30):
    """An mp4 of grey frames [H,W] uint8."""
    height, width = frames[0].shape
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(fps),
               "-i", "-", "-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", str(file)]
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True, capture_output=True)
    return file


def write_database(file, descriptors):
    """A database as COLMAP's, of photos 'photo 1.jpg' and so on, with a table [k,128] uint8 of descriptors each."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        for table in ("descriptors", "keypoints"):
            connection.execute(f"CREATE TABLE {table} (image_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB)")
        for key, values in enumerate(descriptors, 1):
            connection.execute("INSERT INTO images VALUES (?, ?)", (key, f"photo {key}.jpg"))
            connection.execute("INSERT INTO descriptors VALUES (?, ?, 128, ?)", (key, len(values), values.tobytes()))
            connection.execute("INSERT INTO keypoints VALUES (?, ?, 4, x'')", (key, len(values)))


def aligned_errors(found, truth):
    """Rotation errors in degrees and position errors in units of the cameras' spread, [n] each, after the best similarity.

    found, truth: camera-to-world [n,3,4]. The similarity is Umeyama's (PAMI 1991), of the camera positions.
    """
    a, b = found[:, :, 3], truth[:, :, 3]
    centred, target = a - a.mean(axis=0), b - b.mean(axis=0)
    u, stretch, vt = np.linalg.svd(target.T @ centred)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ flip @ vt
    scale = (stretch * flip.diagonal()).sum() / (centred**2).sum()
    positions = np.linalg.norm(scale * centred @ rotation.T - target, axis=1) / np.sqrt((target**2).sum(axis=1).mean())
    turns = np.swapaxes(truth[:, :, :3], 1, 2) @ rotation @ found[:, :, :3]
    cosines = (np.trace(turns, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))), positions
