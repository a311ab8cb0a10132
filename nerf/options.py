"""Every flag of the command line: one dataclass field a flag, from which the parser, `--help`, the checks and the printed table are made.

Options are frozen once parsed. What changes during a run (ray count, tau, occupancy) belongs to the object that changes it.
"""

import argparse
import dataclasses
import difflib
import json
import re
import sys
import tempfile
from decimal import Decimal
from functools import partial
from pathlib import Path

from nerf.errors import UserError
from nerf.files import write_file
from nerf.option_checks import check_options, check_presets
from nerf.option_text import USAGE, flag_fields, help_text, table_text, value_type

PRESETS = {
    "O": {**dict.fromkeys(("fp16", "preload", "cuda_ray", "mark_untrained", "adaptive_num_rays", "random_image_batch"), True), "background": "random"},
    "O2": {**dict.fromkeys(("fp16", "preload", "contract", "adaptive_num_rays", "random_image_batch"), True), "bound": 128.0},
}
SCIENTIFIC_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def flag(group, default, help_line, **limits):
    """A field with what the parser, the help and the checks need to know of its flag.

    limits: `low`, `high` (inclusive), `above`, `below` (exclusive), `choices`, `metavar`, `automatic` (what None stands for, in words) and
    `sizes` = (on a GPU, on a CPU), the two values that `resolve` puts in the place of None.
    """
    return dataclasses.field(default=default, metadata={"group": group, "help": help_line, **limits})


_presets, _run, _scene, _sampling = partial(flag, "presets"), partial(flag, "run"), partial(flag, "scene"), partial(flag, "sampling")
_proposal, _training, _network = partial(flag, "proposal networks (-O2)"), partial(flag, "training"), partial(flag, "network")
_mining, _viewer, _export = partial(flag, "mining"), partial(flag, "viewer"), partial(flag, "export (--test)")


@dataclasses.dataclass(frozen=True)
class Options:
    """One field a flag, of the same name. `parse_options` fills in the presets and checks; constructing directly does neither.

    `given` holds the names of the flags that the person typed, `implied` those that a preset filled in.
    """

    path: str = _presets(dataclasses.MISSING, "folder of the scene", metavar="PATH")
    O: bool = _presets(False, "Instant-NGP preset")
    O2: bool = _presets(False, "Nerfacto preset")

    workspace: str = _run("workspace", "folder for checkpoints, pictures and logs", metavar="DIR")
    seed: int = _run(0, "seed of every random choice", low=0, high=2**32 - 1)
    ckpt: str = _run("latest", "where to start: latest | scratch | best | a file", metavar="CHOICE")
    test: bool = _run(False, "do not train: evaluate the checkpoint and render a video")
    test_no_video: bool = _run(False, "with --test, evaluate only")
    video_frames: int = _run(100, "frames of the video", low=2, high=100_000)
    device: str = _run("auto", "where to compute", choices=("auto", "cuda", "cpu"))
    iters: int = _run(2_000_000_000, "stop after this many steps, if --max_training_time does not come first", low=1)
    max_training_time: float = _run(4.0, "stop after this many minutes of training, if --iters does not come first", above=0)
    val_checkpoint: float = _run(120.0, "seconds of training between validations", above=0)
    eval_cnt: int = _run(0, "validate this many times a run, evenly, instead of by --val_checkpoint; 0 = off", low=0)
    save_cnt: int = _run(50, "write about this many checkpoints a run", low=1)

    data_format: str = _scene("auto", "how the cameras are stored; auto finds out", choices=("auto", "colmap", "nerf", "llff", "dtu"))
    train_split: str = _scene("train", "photos to train on", choices=("train", "trainval", "all"))
    image_cache: str = _scene("auto", "where photos are kept; auto: the first of gpu (with --preload), cpu, disk with room", choices=("auto", "gpu", "cpu", "disk"))
    preload: bool = _scene(False, "let --image_cache auto keep the photos on the GPU")
    random_image_batch: bool = _scene(False, "let each ray of a step come from its own photo, rather than all from one")
    downscale: int = _scene(1, "divide the photos' size by this", low=1, high=64)
    bound: float | None = _scene(None, "half side of the scene's cube", above=0, high=512, automatic="from the scene")
    scale: float = _scene(-1.0, "multiply camera positions by this; -1 = automatic")
    offset: tuple[float, float, float] = _scene((0.0, 0.0, 0.0), "add this to camera positions, after scaling")
    enable_cam_near_far: bool = _scene(False, "take each photo's near and far from the sparse points it sees")
    enable_cam_center: bool = _scene(False, "centre the scene on the mean camera rather than the mean sparse point; --backbone merf with a preset implies it")
    camera_traj: str = _scene("interp", "path of the video's camera", choices=("interp", "circle", "ellipse", "spiral"))
    camera_path: str = _scene("", "file with the path of the video's camera, in nerfstudio's JSON", metavar="FILE", automatic="none")
    vis_pose: bool = _scene(False, "write a page and a picture of the cameras and sparse points")

    cuda_ray: bool = _sampling(False, "march through an occupancy grid, rather than sample by proposal networks")
    min_near: float | None = _sampling(None, "no sample is nearer to the camera than this", above=0, automatic="from the scene")
    T_thresh: float = _sampling(1e-4, "stop along a ray when less than this much light passes", low=0, below=1)
    max_steps: int | None = _sampling(None, "most samples a ray; also sets the smallest step", low=1, high=65_536, sizes=(1024, 256))
    grid_size: int | None = _sampling(None, "cells a side of the occupancy grid, a power of two", low=8, high=512, sizes=(128, 64))
    update_extra_interval: int = _sampling(16, "steps between updates of the occupancy grid", low=1)
    mark_untrained: bool = _sampling(False, "close the cells that no camera sees")
    dt_gamma: float = _sampling(1 / 256, "let the step grow with distance by this factor; 0 = constant step", low=0, high=1)
    density_thresh: float = _sampling(10.0, "a cell denser than this is always occupied", above=0)
    contract: bool = _sampling(False, "contract the space outside the unit cube into a cube of half side 2")
    background: str = _sampling("last_sample", "what lies behind a ray's samples", choices=("white", "random", "last_sample"))

    num_steps: tuple[int, int, int] = _proposal((256, 96, 48), "samples a ray: two proposal networks, field", low=1, high=1024)
    max_ray_batch: int = _proposal(16_384, "rays rendered at once", low=1)
    lambda_proposal: float = _proposal(1.0, "weight of the interlevel loss", low=0)
    lambda_distort: float = _proposal(0.0, "weight of the distortion loss", low=0)
    anneal_steps: int = _proposal(1000, "steps in which the proposals sharpen; 0 = sharp from the start", low=0)

    fp16: bool = _training(False, "compute the field in half precision")
    graph: bool = _training(True, "record the step as a CUDA graph and replay it, which takes the host out of it (CUDA)")
    lr: float = _training(4e-3, "learning rate", above=0, high=1)
    lr_schedule: str = _training("constant", "exponential: to a tenth by the end of the run", choices=("constant", "exponential"))
    num_rays: int = _training(4096, "rays a step; the first step's if adaptive", low=1, high=2**22)
    adaptive_num_rays: bool = _training(False, "change the number of rays so that a step has --num_points samples")
    num_points: int | None = _training(None, "samples a step aims at", low=64, high=2**26, sizes=(2**18, 2**14))
    lambda_entropy: float = _training(0.0, "weight of the entropy of a ray's opacity", low=0)
    lambda_tv: float = _training(0.0, "weight of the hash grid's total variation", low=0)
    lambda_wd: float = _training(0.0, "weight decay of the hash grid", low=0)
    refine_poses: bool = _training(False, "correct the training photos' poses while learning; WORKSPACE/poses.json holds the result")
    pose_lr: float = _training(3e-4, "learning rate of the poses, in radians and world units", above=0, high=0.1)
    near_grad_scale: float = _training(0.5, "nearer to a camera than this, gradients shrink with the square of distance (fewer floaters); 0 = off", low=0)
    ema_decay: float = _training(0.999, "most decay, every 16 steps, of the averaged weights that are evaluated; less in the beginning", low=0, below=1)

    field: str = _network("fused", "compute the field in kernels of its own where there are some (CUDA), or layer by layer", choices=("fused", "torch"))
    backbone: str = _network("ngp", "what is learned", choices=("ngp", "merf"))
    appearance: int = _network(0, "numbers that each photo has of its own, for exposure and white balance; its pictures show their mean", low=0, high=256)
    log2_table_size: int | None = _network(None, "log2 of the entries of a hash table", low=4, high=24, sizes=(19, 15))

    hsm: bool = _mining(False, "hard sample mining: learn from the hard samples only")
    hsm_budget: str = _mining("tau", "mine B/tau samples (the paper), B/tau^2 or --hsm_fraction of B", choices=("tau", "ess", "fixed"))
    hsm_fraction: float = _mining(0.15, "share of the samples that are mined under --hsm_budget fixed", above=0, high=1)
    hsm_floor: float = _mining(0.05, "mine at least this share of the samples", above=0, high=1)
    hsm_cap: float = _mining(0.5, "mine at most this share of the samples", above=0, high=1)
    hsm_draw: str = _mining("thinning", "how they are drawn", choices=("thinning", "multinomial", "poisson", "top", "uniform"))
    hsm_alpha: float = _mining(0.0, "re-weight by (1/inclusion probability)^alpha; 0 = the paper, 1 = unbiased", low=0, high=1)

    gui: bool = _viewer(False, "watch the training, or the checkpoint with --test, in a viewer")
    W: int = _viewer(1000, "width in pixels", low=16, high=16_384)
    H: int = _viewer(1000, "height in pixels", low=16, high=16_384)
    radius: float = _viewer(1.0, "distance of the camera from the centre", above=0)
    fovy: float = _viewer(50.0, "vertical field of view in degrees", above=0, below=180)
    max_spp: int = _viewer(1, "average up to this many frames of a camera at rest", low=1)
    port: int = _viewer(7007, "port that the viewer listens on", low=1, high=65_535)

    test_no_mesh: bool = _export(False, "with --test, make no mesh")
    mcubes_reso: int | None = _export(None, "cells a side of the mesh's inner cube", low=8, high=4096, sizes=(512, 128))
    env_reso: int | None = _export(None, "cells a side of each outer cascade; 0 = the inner cube alone", low=0, high=4096, sizes=(256, 64))
    clean_min_f: int = _export(8, "drop pieces of the mesh with fewer faces", low=0)
    clean_min_d: float = _export(5.0, "drop pieces of the mesh smaller than this many per cent of it", low=0, high=100)
    decimate_target: int = _export(1_000_000, "merge faces down to this many; 0 = keep all", low=0)
    mesh_texture: int = _export(0, "longer side of the mesh's texture in pixels (needs xatlas); 0 = colours a vertex", low=0, high=8192)
    mesh_visibility_culling: bool = _export(False, "drop the faces that no two training cameras see")
    export_points: int = _export(0, "with --test, make a point cloud of at most this many points; 0 = none", low=0, high=2**28)

    given: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    implied: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)


class FlagParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose help comes from the fields and whose complaint about an unknown flag names the nearest one."""

    def format_help(self):
        return help_text(Options, PRESETS)

    def parse_args(self, tokens):
        known = [string for action in self._actions for string in action.option_strings]
        for token in tokens:
            name = token.split("=")[0]
            if token == "--":
                break
            if token.startswith("-") and name not in known and not _is_number(token):
                near = difflib.get_close_matches(name, known, n=1)
                self.error(f"unrecognized arguments: {name}" + (f" (did you mean {near[0]}?)" if near else "; --help lists the flags"))
        return super().parse_args(tokens)


def parse_options(argv=None):
    """The options of a command line (`sys.argv[1:]` when argv is None), presets filled in and everything checked.

    Raises UserError for a value out of range and for flags that contradict each other. What argparse refuses (an unknown flag, a word where
    a number belongs) ends in its own message and exit status 2.
    """
    tokens = [_without_exponent(token) for token in (sys.argv[1:] if argv is None else argv)]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(_parser().parse_args(tokens)).items()}
    check_presets(given)
    implied = _implied(given)
    options = Options(**given, **implied, given=tuple(given), implied=tuple(implied))
    check_options(options)
    return options


def resolve(options, device):
    """The options with each automatic size settled for a device ("cpu", "cuda:0", a torch.device); `bound` and `min_near` are the scene reader's."""
    on_cpu = str(device).startswith("cpu")
    missing = [entry for entry in flag_fields(Options) if "sizes" in entry.metadata and getattr(options, entry.name) is None]
    return dataclasses.replace(options, **{entry.name: entry.metadata["sizes"][on_cpu] for entry in missing})


def prepare_workspace(options):
    """The workspace's folder, made if need be. Raises UserError if it cannot be made or nothing can be written in it."""
    folder = Path(options.workspace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workspace {options.workspace} cannot be written ({reason}); choose another folder.") from None
    return folder


def save_options(options, workspace):
    """Write WORKSPACE/options.json: name and value of every flag in the order of the fields, plain types, all or nothing.

    The scene's path is written as it is from everywhere: absolute, links followed. Raises UserError where the file cannot be written.
    """
    values = {entry.name: getattr(options, entry.name) for entry in flag_fields(Options)}
    values["path"] = str(Path(options.path).expanduser().resolve())
    write_file(Path(workspace) / "options.json", (json.dumps(values, indent=2) + "\n").encode())


def options_table(options):
    """The flags by group as text to print, the implied ones marked; coloured and as wide as the terminal where stdout is one."""
    preset = "-O2" if options.O2 else "-O"
    return table_text(options, preset)


def _parser():
    parser = FlagParser(prog="main.py", usage=USAGE, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for entry in flag_fields(Options):
        if entry.name == "path":
            parser.add_argument("path")
            continue
        if entry.name in PRESETS:
            parser.add_argument(f"-{entry.name}", action="store_true")
            continue
        kind, count = value_type(entry)
        if kind is bool:
            parser.add_argument(f"--{entry.name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{entry.name}", type=kind, nargs=count, choices=entry.metadata.get("choices"))
    return parser


def _implied(given):
    """What the preset among the given flags adds to them.

    Contraction has no cells that no camera sees, so it takes back mark_untrained. MeRF's finest cells are coarser than those of the others: with
    it a preset centres on the cameras, which fit the unit ball best from there, so that the scene is as large as can be.
    """
    preset = next((values for name, values in PRESETS.items() if given.get(name)), {})
    if preset and given.get("backbone") == "merf":
        preset = {**preset, "enable_cam_center": True}
    implied = {name: value for name, value in preset.items() if name not in given}
    if given.get("contract"):
        implied.pop("mark_untrained", None)
    return implied


def _is_number(token):
    try:
        float(token)
    except ValueError:
        return False
    return True


def _without_exponent(token):
    """`-1e-3` as `-0.001`: argparse takes the first for a flag."""
    return format(Decimal(token), "f") if SCIENTIFIC_NEGATIVE.fullmatch(token) else token
