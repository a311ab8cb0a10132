"""Train, test or look at a neural radiance field. `python main.py --help` lists the options."""

import sys

import torch

from nerf import checkpoint, workspace
from nerf.errors import UserError
from nerf.memory import memory_that_ran_out
from nerf.options import (
    options_table,
    parse_options,
    prepare_workspace,
    resolve,
    save_options,
)
from nerf.scene import load_scene
from nerf.scene.sanity import sanity_report
from nerf.testing import test
from nerf.training import Trainer


def main():
    """Runs what the command line asks for; returns the exit code."""
    try:
        return run(parse_options())
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not (memory := memory_that_ran_out(error)):
            raise
        detail = str(error).partition("\n")[0]
        print(
            f"main.py: the memory of {memory} ran out{f' ({detail})' if detail else ''}; try a smaller --num_points, --log2_table_size or "
            "--mcubes_reso, a larger --downscale, or --image_cache disk. What was saved stays as it is.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("main.py: interrupted; the last checkpoint stays as it is.", file=sys.stderr)
        return 130


def run(options):
    """Scene, then trainer, then training or test."""
    device = choose_device(options.device)
    options = resolve(options, device)
    folder = prepare_workspace(options)
    print(options_table(options))
    if options.fp16 and device.type == "cpu":
        print("On a CPU the field runs in float32: --fp16 has no effect.")
    scene = load_scene(options)
    print(*scene.notes, *sanity_report(scene, options), sep="\n")
    trainer = Trainer(scene, options, device, folder)
    print(trainer.step.source.note)
    start(trainer, options, folder)
    if options.gui:
        from nerf.viewer import Viewer

        trainer.viewer = Viewer(trainer)
    if options.test:
        test(trainer)
    else:
        if trainer.progress() < 1 or not (folder / "options.json").exists():  # a finished run was not made with the options of now
            save_options(options, folder)
        signal = trainer.train()
        if signal is not None:
            print(f"Stopped by signal {signal} at step {trainer.step.steps}; the state is saved, and the same command goes on from it.")
            return 128 + signal
        print(f"Pictures and metrics.json are in {folder / 'results'}; --test renders a video.")
    if trainer.viewer:
        trainer.viewer.serve()
    return 0


def choose_device(wanted):
    """torch.device of --device; `auto` takes a GPU where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available to torch; use --device cpu or install a CUDA build of torch.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def start(trainer, options, folder):
    """Starts anew or resumes, as --ckpt says, and says which."""
    path = checkpoint.find_checkpoint(folder, options.ckpt)
    if path is None:
        if options.test:
            raise UserError(f"--test: no checkpoint in {folder}; train first, or name one with --ckpt PATH.")
        aside = workspace.set_aside(folder)  # without a checkpoint, too: a run that was killed early leaves pictures and a history
        why = "--ckpt scratch" if options.ckpt == "scratch" else f"No checkpoint in {folder}"
        print(f"{why}: starting from scratch{f'; what an earlier run left is now in {aside}' if aside else ''}.")
        return
    trainer.resume(path)
    if not options.test:
        workspace.go_on_from(folder, trainer.step.steps)
    print(f"Resuming from {path}: step {trainer.step.steps}, {trainer.clock.seconds:.1f} s of training (--ckpt scratch starts anew).")


if __name__ == "__main__":
    sys.exit(main())
