"""The training loop: when to step, look at the grid, validate, save, and stop. What a step does is nerf/step.py."""

import math
import signal
import sys

import numpy as np
import torch
from torch import nn

from nerf import checkpoint, workspace
from nerf.clock import TrainingClock
from nerf.console import Progress, Scalars
from nerf.ema import ExponentialMovingAverage
from nerf.errors import UserError
from nerf.evaluation import evaluate, measured_under
from nerf.model import build_model
from nerf.rays import RaySource, Views
from nerf.readout import Readout
from nerf.scene_identity import check_scene, scene_state
from nerf.snapshot import Snapshot
from nerf.step import StepNumbers, TrainingStep
from nerf.volume import density

READ_INTERVAL = 16  # steps between readings of what the device has to tell
EMA_INTERVAL = 16  # steps between updates of the mean weights and of the learning rate
LOG_INTERVAL = 128  # steps between entries in the scalar log
SNAPSHOT_INTERVAL = 1024  # steps between copies of the state that a non-finite loss falls back to
MOST_RESTORES = 3
PLACEMENT = ("enable_cam_center", "scale", "offset")  # options by which a scene gets its place in the world, and a field its meaning


class Trainer:
    """Trains a model of a scene.

    Args:
        scene: nerf.scene.Scene; options: nerf.options.Options, resolved; device: torch.device.
        folder: the workspace, a Path.
    """

    def __init__(self, scene, options, device, folder):
        self.scene, self.options, self.device, self.folder = scene, options, device, folder
        torch.manual_seed(options.seed)
        self.clock = TrainingClock(device)
        self.model = build_model(options, scene, device)
        views = Views(scene.cameras, scene.aabb, device)
        if options.cuda_ray and options.mark_untrained:
            self.model.sampler.grid.mark_untrained(Views(scene.cameras.select(scene.train), scene.aabb, device))
        cache = options.image_cache, options.preload
        source = RaySource(scene, scene.train, views, self.model.sampler.most_rays, *cache, options.random_image_batch, options.seed + 1)
        self.step = TrainingStep(self.model.field, self.model.sampler, source, options, device)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.step.optimizer, self._rate)
        self.ema = ExponentialMovingAverage(nn.ModuleList([self.model.field, self.model.sampler]), options.ema_decay)
        self.readout = Readout()
        self.best_psnr, self.restores, self.snapshot = -math.inf, 0, Snapshot()
        self.validations, self.saves = 0, 0
        self._last_read = (0, 0.0)
        self._pace = 0.0  # seconds a step before that
        self._began = 0  # the step at which this process went on
        self.memory_before = 0.0  # MiB on the device before the first step: weights, photos, buffers
        self.viewer = None  # nerf.viewer.Viewer, where --gui asks for one

    # ---- when

    def progress(self):
        """How much of the run is done, 0 to 1: by steps or by time, whichever is further."""
        seconds = self.options.max_training_time * 60
        return min(1.0, max(self.step.steps / self.options.iters, self.clock.seconds / seconds))

    def _rate(self, _):
        return 0.1 ** self.progress() if self.options.lr_schedule == "exponential" else 1.0

    def _validation_due(self):
        if self.options.eval_cnt:
            return self.progress() * self.options.eval_cnt >= self.validations + 1
        return self.clock.seconds >= (self.validations + 1) * self.options.val_checkpoint

    def _save_due(self):
        return self.progress() * self.options.save_cnt >= self.saves + 1

    # ---- the loop

    def train(self):
        """Trains until the steps or the time are used up, or a signal asks to stop; saves, and writes pictures and metrics to WORKSPACE/results.

        Returns:
            The number of the signal that ended the run early, else None.
        Raises:
            UserError: the loss stays non-finite although the last good state was restored.
        """
        display = Progress(self.options.iters if "iters" in self.options.given else None)
        scalars = Scalars(self.folder)
        self._align_schedules()
        self.snapshot.take(self.state_dict())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.memory_before = torch.cuda.memory_allocated(self.device) / 2**20
        try:
            with _StopSignals() as stop, self.clock.running():
                while self.progress() < 1 and stop.signal is None:
                    self.advance()
                    self._after_step(display, scalars)
                    if self.viewer and self.step.steps % READ_INTERVAL == 0:
                        self.viewer.refresh(lambda: stop.signal is not None)
                with self.clock.paused():
                    self._close_training(display)
                    if stop.signal is None:
                        self._finish(display, scalars)
                    self.snapshot.settle()
            return stop.signal
        finally:
            display.close()
            scalars.close()

    def advance(self):
        """One step, with what belongs to it every few steps; nothing here waits for the device."""
        self.model.sampler.before_step(self.step.steps, self._density, self.step.generator, self.step.replay)
        self.step()
        if self.step.steps % EMA_INTERVAL == 0:
            self.scheduler.step()
            self.ema.update()

    def follow(self):
        """Sends the step's numbers on their way to the host, and fits the room for hard samples to the newest that have arrived.

        Returns:
            (step, StepNumbers) of the newest, or None before the first.
        """
        self.readout.push(self.step.steps, self.step.numbers)
        read = self.readout.latest()
        if read is None:
            return None
        numbers = StepNumbers(*read[1])
        self.step.fit(numbers)
        return read[0], numbers

    def _after_step(self, display, scalars):
        """What falls due after a step: reading, snapshot, validation, checkpoint."""
        steps = self.step.steps
        if steps % READ_INTERVAL == 0:
            read = self.follow()
            if read and not self._restore_if_bad(display):
                self._show(*read, display, scalars)
        snapshot_due = steps % SNAPSHOT_INTERVAL == 0 and not self.snapshot.busy
        if snapshot_due or self._save_due() or self._validation_due():
            with self.clock.paused():
                self._keep(display, scalars)

    def _show(self, steps, numbers, display, scalars):
        shown = self._shown(steps, numbers)
        display.update(steps, shown)
        if self.viewer:
            self.viewer.update(steps, shown)
        if self.step.steps % LOG_INTERVAL == 0:
            rate = self.options.lr * self._rate(None)
            scalars.add(steps, {f"train/{name}": value for name, value in {**numbers._asdict(), "lr": rate}.items()})

    def _density(self, positions):
        return density(self.model.field.density(positions))

    def _is_sound(self, display):
        """Waits for the last step and, where a loss was not finite, goes back to the last good state; True where all is finite."""
        self.readout.push(self.step.steps, self.step.numbers)
        self.readout.wait()
        return not self._restore_if_bad(display)

    def _close_training(self, display):
        """What the last step of a run, or of a part of it, leaves: a checkpoint, and the poses if they were refined. Nothing, where that is there already."""
        if self.step.steps == self._began and (self.folder / "checkpoints" / checkpoint.step_name(self._began)).exists():
            return
        self._is_sound(display)
        self.snapshot.take(self.state_dict())
        self._write()
        if self.step.poses:
            self.step.poses.save(self.folder / "poses.json", [self.scene.names[i] for i in self.scene.train])

    def _keep(self, display, scalars):
        """With the clock stopped: checks that all is finite, then snapshot, validation and checkpoint as they are due."""
        if not self._is_sound(display):
            return
        self.snapshot.take(self.state_dict())
        if self.progress() < 1 and self._save_due():
            self._write()
        if self.progress() < 1 and self._validation_due():
            self._validate(display, scalars, self._validation_folder(), pictures=1)

    def _shown(self, steps, numbers):
        """What the progress line tells when `steps` are known to be done: name -> short text."""
        pace = self.seconds_per_step(steps)
        left = min(self.options.max_training_time * 60 - self.clock.seconds, (self.options.iters - steps) * pace if pace else math.inf)
        return {
            "loss": f"{numbers.loss:.5f}",
            "PSNR": f"{-10 * math.log10(max(numbers.squared_error, 1e-10)):.2f}",
            "rays": f"{numbers.rays:.0f}",
            "samples": f"{numbers.samples:.0f}",
            "b/B": f"{numbers.hard / max(numbers.samples, 1):.2f}",
            "ms/step": f"{1000 * pace:.2f}" if pace else "?",
            "memory": f"{self.peak_memory():.0f} MiB",
            "left": hours(left),
        }

    def seconds_per_step(self, steps=None):
        """Mean seconds of a step since the last validation, by the `steps` that are known to be done (None: all are); where there are none, of those before it."""
        before, seconds = self._last_read
        done = (self.step.steps if steps is None else steps) - before
        return (self.clock.seconds - seconds) / done if done > 0 else self._pace

    def peak_memory(self):
        """MiB: the most that training allocated on the device since the last validation; of the process on a CPU."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) + self.step.replay.memory()) / 2**20
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    # ---- validation

    def _validate(self, display, scalars, folder, **options):
        """Measures the mean weights on the held-out photos into a folder (options as of `evaluate`) and adds a line to the history. The snapshot is of this step."""
        line = {
            "step": self.step.steps, "training_time": round(self.clock.seconds, 3), **self._told_of_steps(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        }  # fmt: skip
        result = self.evaluate(folder, **options)
        line |= {key: result[key] for key in ("psnr", "ssim", "lpips", "frames_per_second")}
        workspace.add_to_history(self.folder, line)
        scalars.add(self.step.steps, {f"validation/{name}": line[name] for name in ("psnr", "ssim") if line[name] is not None})
        display.print(f"step {self.step.steps}, {self.clock.seconds:.1f} s: held-out PSNR {_number(line['psnr'], 2)}, SSIM {_number(line['ssim'], 4)}")
        self.validations += 1
        if line["psnr"] is not None and result["non_finite"] == 0 and line["psnr"] > self.best_psnr:
            self.best_psnr = line["psnr"]
            self.snapshot.state["best_psnr"] = self.best_psnr
            self.snapshot.write(checkpoint.save_checkpoint, self.folder / "checkpoints", checkpoint.BEST)
        self._pace = self.seconds_per_step()
        self._last_read = (self.step.steps, self.clock.seconds)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _told_of_steps(self):
        """What the history tells of the steps since the last validation; nothing, where this process did none."""
        if self.step.steps == self._began:
            return {}
        self.readout.push(self.step.steps, self.step.numbers)
        numbers = StepNumbers(*self.readout.wait()[1])
        return {
            "ms_per_step": round(1000 * self.seconds_per_step(), 4), "peak_memory_mib": round(self.peak_memory(), 1),
            "memory_before_mib": round(self.memory_before, 1), "rays_per_step": numbers.rays, "samples_per_step": numbers.samples,
            "hard_fraction": numbers.hard / max(numbers.samples, 1), "tau": numbers.tau,
        }  # fmt: skip

    def _finish(self, display, scalars):
        """The last validation; what --test measures is in WORKSPACE/results, also where a scene has other photos to test on than to validate on.

        Where a finished run is started again its history ends here already, and stays as it is.
        """
        results = self.folder / "results"
        if workspace.last_validation(self.folder) == self.step.steps:
            self.evaluate(results, self.scene.test, report=display.print)
        elif np.array_equal(self.scene.val, self.scene.test):
            self._validate(display, scalars, results, report=display.print)
        else:
            self._validate(display, scalars, self._validation_folder(), pictures=1)
            self.evaluate(results, self.scene.test, report=display.print)

    def _validation_folder(self):
        return self.folder / "validation" / f"step_{self.step.steps:08d}"

    def evaluate(self, folder, indices=None, **options):
        """Metrics and pictures of the mean weights on held-out photos; options as of nerf.evaluation.evaluate."""
        with self.ema.swapped():
            conditions = measured_under(self.options, self.step.steps, self.clock.seconds)
            return evaluate(self.model.render, self.scene, self.scene.val if indices is None else indices, folder, conditions=conditions, **options)

    # ---- state

    def signature(self):
        """What a checkpoint must agree on: the network, and where the scene lies in the world."""
        return {**self.model.signature(), **{name: getattr(self.options, name) for name in PLACEMENT}}

    def state_dict(self):
        """Everything that a resumed run needs: tensors and plain types only."""
        return {
            "signature": self.signature(), "scene": scene_state(self.scene), "step": self.step.steps, "training_time": self.clock.seconds, "best_psnr": self.best_psnr,
            "field": self.model.field.state_dict(), "sampler": self.model.sampler.state_dict(), "ema": self.ema.state_dict(),
            "training": self.step.state_dict(), "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state):
        """Continues from a state; a device different from the one that made it will do, and so will other --lr and --pose_lr."""
        rates = [rate.clone() for rate in self.scheduler.base_lrs]
        self.model.field.load_state_dict(state["field"])
        self.model.sampler.load_state_dict(state["sampler"])
        self.ema.load_state_dict(state["ema"])
        self.step.load_state_dict(state["training"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scheduler.base_lrs = rates
        for group, rate in zip(self.step.optimizer.param_groups, rates, strict=True):
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"].copy_(rate)
        self.best_psnr = state["best_psnr"]

    def resume(self, path):
        """Takes the state of a checkpoint.

        Raises:
            UserError: the file cannot be read, or is of another network or scene, or of a scene placed otherwise.
        """
        state = checkpoint.load_checkpoint(path, self.device)
        checkpoint.check_signature(state["signature"], self.signature(), path)
        check_scene(state["scene"], self.scene, path, self.options.refine_poses or self.options.appearance)
        self.load_state_dict(state)
        self.clock = TrainingClock(self.device, state["training_time"])
        self._last_read = (self.step.steps, self.clock.seconds)
        self._began = self.step.steps

    def save(self):
        """Writes a checkpoint of this step, now, and removes old ones. The snapshot stays: whether all is finite here has not been looked at."""
        self.snapshot.settle()
        checkpoint.save_step(self.folder / "checkpoints", self.step.steps, self.state_dict())
        self.saves += 1

    def _write(self):
        """Has a checkpoint of the snapshot written, and old ones removed, while training goes on."""
        self.snapshot.write(checkpoint.save_step, self.folder / "checkpoints", self.snapshot.state["step"])
        self.saves += 1

    def _align_schedules(self):
        """Counts validations and saves that a resumed run has behind it."""
        self.saves = int(self.progress() * self.options.save_cnt)
        done = self.progress() * self.options.eval_cnt if self.options.eval_cnt else self.clock.seconds / self.options.val_checkpoint
        self.validations = int(done)

    def _restore_if_bad(self, display):
        """Goes back to the last good state where a loss was not finite; True where that happened."""
        _, numbers = self.readout.latest()
        bad_step = int(StepNumbers(*numbers).bad_step)
        if bad_step < 0:
            return False
        self.restores += 1
        good = self.snapshot.state["step"]
        if self.restores > MOST_RESTORES:
            self._write()
            self.snapshot.settle()
            raise UserError(f"The loss is not finite at step {bad_step}, for the {self.restores}th time; the last good state (step {good}) is saved: lower --lr, or use --no-fp16.")  # fmt: skip
        display.print(f"The loss is not finite at step {bad_step}: back to the state of step {good}.")
        seed = self.options.seed + 1000 * self.restores  # other draws than those that led here
        self.load_state_dict(self.snapshot.state)
        self.step.generator.manual_seed(seed)
        self.step.source.generator.manual_seed(seed + 1)
        self.readout = Readout()
        self.readout.push(self.step.steps, self.step.numbers)
        self.readout.wait()
        return True


def hours(seconds):
    """Seconds as hours, minutes and seconds, such as 25:03:09; none below zero."""
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def _number(value, digits):
    return "not finite" if value is None else f"{value:.{digits}f}"


class _StopSignals:
    """While this holds, SIGINT and SIGTERM are noted in `signal` instead of ending the process; a second one ends it."""

    def __enter__(self):
        self.signal = None
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, self._before[number])
        print("\nStopping after what is being done now; the state will be saved. A second signal stops at once.", file=sys.stderr)

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
