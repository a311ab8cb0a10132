"""Video files by ffmpeg: frames in, h264 out; and parts joined."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.files import replacing, writable

CONSTANT_QUALITY = "18"  # x264's scale, 0 to 51: 18 looks like the original
# Unmarked colours are shown differently by different players: convert by BT.709 and say so in the file. Newer ffmpegs write what the frames are marked with,
# older ones (4.2) what the options say.
FILTERS = "scale=out_color_matrix=bt709:out_range=tv,setparams=color_primaries=bt709:color_trc=bt709"
COLOURS = ["-vf", FILTERS, "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
# Without frames that refer to later ones the times in a part begin at 0, and parts join without a gap.
CODEC = ["-c:v", "libx264", "-crf", CONSTANT_QUALITY, "-bf", "0", "-pix_fmt", "yuv420p", *COLOURS]


def ffmpeg_path():
    """Where ffmpeg is. Raises UserError where it is not."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError("No ffmpeg for the video: run pip install imageio-ffmpeg, or pass --test_no_video.") from error


@contextlib.contextmanager
def encoding(ffmpeg, path, size, fps):
    """An Encoder whose file takes the name `path` when the block ends, and is dropped when the block raises.

    ffmpeg: of `ffmpeg_path`; size: (width, height); fps: frames a second. Raises UserError where the file cannot be written.
    """
    with writable(path), replacing(path) as temporary, tempfile.TemporaryFile() as log:
        encoder = Encoder(ffmpeg, temporary, size, fps, log)
        try:
            yield encoder
            encoder.finish()
        finally:
            encoder.abandon()


def join_videos(ffmpeg, parts, path):
    """Joins video files of one format, one after the other, into `path`; nothing is encoded again. Raises UserError where it cannot be written."""
    with writable(path), replacing(path) as temporary, tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        for part in parts:
            quoted = str(Path(part).absolute()).replace("'", "'\\''")
            names.write(f"file '{quoted}'\n")
        names.flush()
        inputs = ["-f", "concat", "-safe", "0", "-i", names.name]
        process = _start(ffmpeg, [*inputs, "-c", "copy", "-movflags", "+faststart", str(Path(temporary).absolute())], log)
        process.stdin.close()
        _finish(process, log, path)


class Encoder:
    """One ffmpeg process that makes a file of the frames it is given."""

    def __init__(self, ffmpeg, path, size, fps, log):
        self.path, self.shape, self.log = path, (int(size[1]), int(size[0]), 3), log
        even = [length + length % 2 for length in self.shape[:2]]  # h264 halves the colour's resolution and takes even sizes only
        self.padding = [(0, even[0] - self.shape[0]), (0, even[1] - self.shape[1]), (0, 0)]
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{even[1]}x{even[0]}", "-r", str(fps), "-i", "-"]
        self.process = _start(ffmpeg, [*source, *CODEC, "-movflags", "+faststart", str(Path(path).absolute())], log)

    def add(self, frame):
        """Appends a frame [H, W, 3] uint8. Raises ValueError for another size, UserError where ffmpeg has given up."""
        if frame.shape != self.shape:
            raise ValueError(f"a frame has shape {frame.shape} and its camera {self.shape}: they must be equal")
        try:
            self.process.stdin.write(np.pad(frame, self.padding, mode="edge"))
        except OSError:
            self.finish()

    def finish(self):
        """Waits until the file is whole. Raises UserError where it is not."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        _finish(self.process, self.log, self.path)

    def abandon(self):
        """Ends the process, whatever it was doing."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


def _start(ffmpeg, arguments, log):
    try:
        # A session of its own: Ctrl-C is for the program to handle, which then closes its videos.
        return subprocess.Popen([ffmpeg, "-y", "-v", "error", *arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    except OSError as error:
        raise UserError(f"Cannot run ffmpeg at {ffmpeg} ({error.strerror}): unset or correct IMAGEIO_FFMPEG_EXE.") from error


def _finish(process, log, path):
    if process.wait() != 0:
        log.seek(0)
        reason = " ".join(log.read().decode(errors="replace").split())[-300:] or f"exit status {process.returncode}"
        raise UserError(f"ffmpeg could not write {path} ({reason}): free some space there or choose another folder.")
