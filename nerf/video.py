"""Videos of a camera path: colour, depth and opacity, encoded while the next frame renders, in parts that an interrupted video goes on from."""

import contextlib
import hashlib
import json
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nerf.encoding import encoding, ffmpeg_path, join_videos
from nerf.errors import UserError
from nerf.evaluation import Progress
from nerf.files import remove_partial_files, writable, write_file
from nerf.images import depth_limits, depth_picture, to_uint8

KINDS = ("rgb", "depth", "opacity")
PROBES = 4  # frames, spread over the path, from which the range of the depth colours is taken
PART = 48  # frames of a part: what an interruption costs at most
WAITING = 2  # rendered frames that may wait for the encoder


def render_video(render, cameras, folder, fps=24, depth_range=None, report=None, identity=""):
    """Render `cameras` one after the other into folder/rgb.mp4, depth.mp4 and opacity.mp4 (h264, yuv420p; every frame once).

    A thread encodes each frame while the next one renders. Frames go into parts of 48 in folder/video_parts; the three files are joined
    from those at the end, and get their names when they are complete. A video that was interrupted goes on after its last complete part,
    if it is the same one: same cameras, rate, depth range and `identity`.

    render: callable, (Cameras, index) -> Rendered; cameras: Cameras, n >= 1 rows of one size (an odd one gets its last row or column
    twice); fps: frames a second; depth_range: (near, far) in world units for the depth's colours, by default that of a few frames spread
    over the path; it is the same for all frames, so that the colours do not flicker; report: print or alike, for progress; identity: text
    that says what is rendered, such as the checkpoint and the options.

    Returns the three paths. Raises UserError where there is no frame, no ffmpeg, or a file cannot be written; ValueError where a frame has
    another size than its camera or the cameras differ in size.
    """
    if len(cameras) == 0:
        raise UserError("The camera path has no frames: ask for at least one with --video_frames.")
    if (cameras.sizes != cameras.sizes[0]).any():
        raise ValueError("cameras have different sizes: the frames of a video are all of one size")
    ffmpeg = ffmpeg_path()
    folder, parts = Path(folder), Path(folder) / "video_parts"
    limits, probes = _plan(render, cameras, parts, _fingerprint(cameras, fps, depth_range, identity), depth_range)
    progress = Progress(report, len(cameras), "video frames")
    starts = range(0, len(cameras), PART)
    for start in starts:
        files = [_part(parts, kind, start) for kind in KINDS]
        indices = range(start, min(start + PART, len(cameras)))
        if not all(file.is_file() for file in files):
            _render_part(render, cameras, indices, files, fps, limits, probes, ffmpeg, progress)
        elif report is not None and start == 0:
            report(f"The video goes on from the parts in {parts}.")
    paths = tuple(folder / f"{kind}.mp4" for kind in KINDS)
    for path, kind in zip(paths, KINDS, strict=True):
        join_videos(ffmpeg, [_part(parts, kind, start) for start in starts], path)
    shutil.rmtree(parts)
    if report is not None:
        report(f"{len(cameras)} frames in {paths[0]}, {paths[1].name} and {paths[2].name}")
    return paths


def _render_part(render, cameras, indices, files, fps, limits, probes, ffmpeg, progress):
    """Renders the frames `indices` into one file a kind."""
    with contextlib.ExitStack() as stack:
        encoders = [stack.enter_context(encoding(ffmpeg, file, cameras.sizes[0], fps)) for file in files]

        def encode(frame):
            rgb, depth, opacity = encoders
            rgb.add(to_uint8(frame.rgb))
            depth.add(depth_picture(frame.depth, frame.opacity, limits))
            opacity.add(np.repeat(to_uint8(frame.opacity)[..., None], 3, axis=-1))

        waiting = deque()
        with ThreadPoolExecutor(1) as worker:
            for index in indices:
                waiting.append(worker.submit(encode, probes.pop(index) if index in probes else render(cameras, index)))
                if len(waiting) > WAITING:
                    waiting.popleft().result()
                progress.update(index + 1)
        for encoded in waiting:
            encoded.result()


def _plan(render, cameras, parts, fingerprint, depth_range):
    """The depth limits of the whole video, and frames by index that were rendered to find them; drops the parts of any other video."""
    file = parts / "plan.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        plan = json.loads(file.read_text())
        if plan["fingerprint"] == fingerprint:
            remove_partial_files(parts)
            near, far = plan["limits"]
            return (near, far), {}
    with writable(parts):
        if parts.exists():
            shutil.rmtree(parts)
    probes = _probes(render, cameras) if depth_range is None else {}
    limits = depth_range or _common_limits(probes.values())
    write_file(file, json.dumps({"fingerprint": fingerprint, "limits": limits}).encode())
    return limits, probes


def _fingerprint(cameras, fps, depth_range, identity):
    """What tells one video from another."""
    digest = hashlib.sha256(repr((fps, depth_range, identity, PART)).encode())
    for column in vars(cameras).values():
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _part(parts, kind, start):
    return parts / f"{kind}_{start:06d}.mp4"


def _probes(render, cameras):
    """A few frames ahead of their turn, by index; they are encoded when it comes and so cost nothing."""
    indices = np.unique(np.linspace(0, len(cameras) - 1, PROBES).round().astype(int))
    return {int(index): render(cameras, int(index)) for index in indices}


def _common_limits(frames):
    limits = [found for frame in frames if (found := depth_limits(frame.depth, frame.opacity))]
    if not limits:
        return 0.1, 10.0  # nothing to see; any range serves as long as it is the same for all frames
    near, far = zip(*limits, strict=True)
    return min(near), max(far)
