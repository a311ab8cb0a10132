"""What --test does: held-out pictures, their metrics, and a video."""

from nerf import trajectory
from nerf.video import render_video


def test(trainer):
    """Renders the held-out photos of a trainer's scene into WORKSPACE/results, and a video, unless --test_no_video says no."""
    options, scene = trainer.options, trainer.scene
    folder = trainer.folder / "results"
    trainer.evaluate(folder, scene.test, report=print)
    print(f"Pictures and metrics.json are in {folder}.")
    if options.test_no_video:
        return
    paths = {"interp": trajectory.interpolated, "circle": trajectory.circle}
    with trainer.ema.swapped():
        render_video(trainer.model.render, paths[options.camera_traj](scene.cameras.select(scene.train), options.video_frames), folder, report=print)
