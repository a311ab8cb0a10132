"""Frames of a video: the sharpest of each interval."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass

import cv2
import numpy as np

from nerf.errors import UserError
from nerf.files import writable

CANDIDATES = 10  # looked at in each interval
MOST_LOOKED_AT = 60  # a second; more would only be the same frames twice
JPEG_QUALITY = 95
NAME = "frame_{:05d}.jpg"
PATTERN = "frame_[0-9][0-9][0-9][0-9][0-9].jpg"


@dataclass(frozen=True)
class Frames:
    """kept: how many frames were written; looked_at: how many were compared; complaint: what ffmpeg said about the file, or ''."""

    kept: int
    looked_at: int
    complaint: str


def extract_frames(video, folder, fps, time_slice=None):
    """Writes `fps` frames a second of `video` into `folder` as frame_00001.jpg and so on; of each interval of 1/fps seconds, the sharpest.

    time_slice: (start, end) in seconds, or None for all of it. Turned videos (phones) are written upright. Sharpness is the variance of the
    Laplacian, which motion blur lowers. Returns Frames. Raises UserError where there is no ffmpeg or no frame in the file.
    """
    if not video.is_file():
        raise UserError(f"--video {video}: no such file; pass the path of a video.")
    candidates = int(np.clip(MOST_LOOKED_AT / fps, 1, CANDIDATES))
    slice_flags = ["-ss", f"{time_slice[0]:.9g}", "-to", f"{time_slice[1]:.9g}"] if time_slice else []
    # The fps filter makes the rate constant, also of a phone's video, whose is not; so that a number of frames is a length of time.
    command = [find_ffmpeg(), "-v", "error", "-nostdin", *slice_flags, "-i", str(video.absolute()), "-map", "0:v:0",
               "-vf", f"fps={fps * candidates:.9g}", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    kept = looked_at = 0
    best, best_sharpness = None, -1.0
    with tempfile.TemporaryFile() as log, _running(command, log) as process:
        while (frame := _read_ppm(process.stdout)) is not None:
            sharpness = cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
            if sharpness > best_sharpness:
                best, best_sharpness = frame, sharpness
            looked_at += 1
            if looked_at % candidates == 0:
                kept += 1
                _write(folder / NAME.format(kept), best)
                best, best_sharpness = None, -1.0
        if best is not None:
            kept += 1
            _write(folder / NAME.format(kept), best)
        process.wait()
        log.seek(0)
        complaint = (log.read().decode(errors="replace").strip().splitlines() or [""])[-1][-300:]
    if not kept:
        within = f" between {time_slice[0]:g} and {time_slice[1]:g} s (--time_slice)" if time_slice else ""
        raise UserError(f"--video {video}: ffmpeg finds no frame in it{within}{f' ({complaint})' if complaint else ''}; pass another file or time.")
    return Frames(kept, looked_at, complaint)


def find_ffmpeg():
    """The installed ffmpeg, else that of imageio-ffmpeg. Raises UserError where there is neither."""
    installed = shutil.which("ffmpeg")
    if installed:
        return installed
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError("No ffmpeg for --video: install it, or run pip install imageio-ffmpeg.") from None


class _running:
    """The process of `command`, killed when the block is left early."""

    def __init__(self, command, log):
        self.command, self.log = command, log

    def __enter__(self):
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        except OSError as error:
            raise UserError(f"Cannot run ffmpeg at {self.command[0]} ({error.strerror}): install it anew.") from None
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()


def _read_ppm(stream):
    """The next picture [H,W,3] uint8 of a stream of binary PPMs as ffmpeg writes them ('P6\\nW H\\n255\\n' and the pixels), or None at its end."""
    if stream.readline() != b"P6\n":
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    pixels = stream.read(width * height * 3)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if len(pixels) == width * height * 3 else None


def _write(file, frame):
    _, encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    with writable(file):
        file.write_bytes(encoded.tobytes())
