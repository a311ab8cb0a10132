"""Videos of a camera path: colour and depth, written frame by frame."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.evaluation import Progress
from nerf.files import replacing, writable
from nerf.images import depth_limits, depth_picture, to_uint8

PROBES = 4  # frames, spread over the path, from which the range of the depth colours is taken
CONSTANT_QUALITY = "18"  # x264's scale, 0 to 51: 18 looks like the original
# Unmarked colours are shown differently by different players: convert by BT.709 and say so in the file.
COLOURS = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]


def render_video(render, cameras, folder, fps=24, depth_range=None, report=None):
    """Render `cameras` one after the other into folder/rgb.mp4 and folder/depth.mp4 (h264, yuv420p).

    A frame is encoded as soon as it is rendered; each file gets its name when it is complete.

    render: callable, (Cameras, index) -> Rendered; cameras: Cameras, n >= 1 rows of one size (an odd one gets its last row or column
    twice); fps: frames a second; depth_range: (near, far) in world units for the depth's colours, by default that of a few frames spread
    over the path; it is the same for all frames, so that the colours do not flicker; report: print or alike, for progress.

    Returns the two paths. Raises UserError where there is no frame, no ffmpeg, or a file cannot be written; ValueError where a frame has
    another size than its camera or the cameras differ in size.
    """
    if len(cameras) == 0:
        raise UserError("The camera path has no frames: ask for at least one with --video_frames.")
    if (cameras.sizes != cameras.sizes[0]).any():
        raise ValueError("cameras have different sizes: the frames of a video are all of one size")
    ffmpeg = _ffmpeg()
    paths = Path(folder) / "rgb.mp4", Path(folder) / "depth.mp4"
    probes = _probes(render, cameras) if depth_range is None else {}
    limits = depth_range or _common_limits(probes.values())
    progress = Progress(report, len(cameras), "video frames")
    with contextlib.ExitStack() as stack:
        colour, depth = (stack.enter_context(_encoding(ffmpeg, path, cameras.sizes[0], fps)) for path in paths)
        for index in range(len(cameras)):
            frame = probes.pop(index) if index in probes else render(cameras, index)
            colour.add(to_uint8(frame.rgb))
            depth.add(depth_picture(frame.depth, frame.opacity, limits))
            progress.update(index + 1)
    if report is not None:
        report(f"{len(cameras)} frames in {paths[0]} and {paths[1].name}")
    return paths


class _Encoder:
    """One ffmpeg process that makes a file of the frames it is given."""

    def __init__(self, ffmpeg, path, size, fps, log):
        self.path, self.shape = path, (int(size[1]), int(size[0]), 3)
        even = [length + length % 2 for length in self.shape[:2]]  # h264 halves the colour's resolution and takes even sizes only
        self.padding = [(0, even[0] - self.shape[0]), (0, even[1] - self.shape[1]), (0, 0)]
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{even[1]}x{even[0]}", "-r", str(fps), "-i", "-"]
        target = ["-c:v", "libx264", "-crf", CONSTANT_QUALITY, "-pix_fmt", "yuv420p", *COLOURS, "-movflags", "+faststart"]
        self.log = log
        # A session of its own: Ctrl-C is for the program to handle, which then closes its videos.
        self.process = subprocess.Popen(
            [ffmpeg, "-y", "-v", "error", *source, *target, str(Path(path).absolute())],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )

    def add(self, frame):
        if frame.shape != self.shape:
            raise ValueError(f"a frame has shape {frame.shape} and its camera {self.shape}: they must be equal")
        try:
            self.process.stdin.write(np.pad(frame, self.padding, mode="edge"))
        except OSError:
            self.finish()

    def finish(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if self.process.wait() != 0:
            self.log.seek(0)
            reason = " ".join(self.log.read().decode(errors="replace").split())[-300:] or f"exit status {self.process.returncode}"
            raise UserError(f"ffmpeg could not write {self.path} ({reason}): free some space there or choose another folder.")

    def abandon(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


@contextlib.contextmanager
def _encoding(ffmpeg, path, size, fps):
    with writable(path), replacing(path) as temporary, tempfile.TemporaryFile() as log:
        try:
            encoder = _Encoder(ffmpeg, temporary, size, fps, log)
        except OSError as error:
            raise UserError(f"Cannot run ffmpeg at {ffmpeg} ({error.strerror}): unset or correct IMAGEIO_FFMPEG_EXE.") from error
        try:
            yield encoder
            encoder.finish()
        finally:
            encoder.abandon()


def _ffmpeg():
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError("No ffmpeg for the video: run pip install imageio-ffmpeg, or pass --test_no_video.") from error


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
