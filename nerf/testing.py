"""What --test does: held-out pictures, their metrics, a mesh, points and a video."""

import dataclasses

from nerf.camera_path import FPS, CameraPath, load_camera_path, save_camera_path
from nerf.evaluation import measured_under
from nerf.exports import make_exports
from nerf.trajectory import PATHS
from nerf.video import render_video


def test(trainer):
    """Renders the held-out photos of a trainer's scene into WORKSPACE/results, and a video, unless --test_no_video says no."""
    options, scene = trainer.options, trainer.scene
    folder = trainer.folder / "results"
    path = None if options.test_no_video else camera_path(options, scene.cameras.select(scene.train))  # first, since it may be refused
    trainer.evaluate(folder, scene.test, report=print, conditions=measured_under(options, trainer.step.steps, trainer.clock.seconds))
    print(f"Pictures and metrics.json are in {folder}.")
    make_exports(trainer, alone=path is None)
    if path is None:
        return
    save_camera_path(folder / "camera_path.json", path.cameras, path.fps)
    # Whatever could change a frame is part of the name under which an interrupted video goes on.
    identity = f"step {trainer.step.steps}, {trainer.clock.seconds} s, {dataclasses.asdict(options)}"
    with trainer.ema.swapped():
        render_video(trainer.model.render, path.cameras, folder, path.fps, report=print, identity=identity)


def camera_path(options, cameras):
    """The CameraPath that --camera_path or --camera_traj asks for, among the training views `cameras`."""
    if options.camera_path:
        return load_camera_path(options.camera_path, cameras)
    return CameraPath(PATHS[options.camera_traj](cameras, options.video_frames), FPS)
