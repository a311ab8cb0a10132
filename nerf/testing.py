"""What --test does, and the end of training: held-out pictures, their metrics, and a video."""

from nerf import trajectory
from nerf.video import render_video


def test(trainer, video):
    """Renders the held-out photos of a trainer's scene into WORKSPACE/results, and with `video` a video, unless --test_no_video says no."""
    options, scene = trainer.options, trainer.scene
    folder = trainer.folder / "results"
    trainer.evaluate(folder, scene.test if options.test else scene.val, report=print)
    print(f"Pictures and metrics.json are in {folder}.")
    if options.test_no_video or not video:
        return
    paths = {"interp": trajectory.interpolated, "circle": trajectory.circle}
    with trainer.ema.swapped():
        render_video(trainer.model.render, paths[options.camera_traj](scene.cameras.select(scene.train), options.video_frames), folder, report=print)
