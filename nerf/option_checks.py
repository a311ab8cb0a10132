"""What a command line may not say: values out of range and flags that contradict each other, each a UserError of one sentence."""

import math

from nerf.errors import UserError
from nerf.option_text import flag_fields, value_text

PROPOSAL_FLAGS = ("num_steps", "max_ray_batch", "lambda_proposal", "lambda_distort", "anneal_steps")
GRID_FLAGS = ("max_steps", "grid_size", "update_extra_interval", "mark_untrained", "dt_gamma", "num_rays")
MESH_FLAGS = ("mcubes_reso", "env_reso", "clean_min_f", "clean_min_d", "decimate_target", "mesh_texture", "mesh_visibility_culling")
PHOTO_FLAGS = ("data_format", "downscale", "train_split")  # they say which photos are learned from and measured on, and at what size


def check_presets(given):
    """At most one preset. given: name -> value of the flags that were typed."""
    if given.get("O") and given.get("O2"):
        raise UserError("-O and -O2 are presets of two different models; give one of them.")


def check_options(options):
    """Raise UserError for the first value out of range, contradiction or missing device of some parsed Options."""
    for entry in flag_fields(options):
        check_range(entry, getattr(options, entry.name))
    _check_special_values(options)
    _check_run(options)
    _check_images(options)
    _check_sampling(options)
    _check_placement(options)
    _check_mining(options)
    _check_poses(options)
    _check_export(options)
    _check_device(options)


def check_range(entry, value):
    """Raise UserError unless each number in `value` is finite and within the limits of the field's metadata."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        limits = entry.metadata
        within = (
            math.isfinite(number)
            and number >= limits.get("low", -math.inf)
            and number <= limits.get("high", math.inf)
            and number > limits.get("above", -math.inf)
            and number < limits.get("below", math.inf)
        )
        if not within:
            raise UserError(f"--{entry.name} {value_text(value)} is out of range; give {_range_text(limits)}.")


def _range_text(limits):
    words = {"low": "at least", "above": "more than", "high": "at most", "below": "less than"}
    parts = [f"{word} {value_text(limits[name])}" for name, word in words.items() if name in limits]
    return " and ".join(parts) if parts else "a finite number"


def _check_special_values(options):
    if options.scale <= 0 and options.scale != -1:
        raise UserError(f"--scale {value_text(options.scale)} is out of range; give more than 0, or -1 for the automatic scale.")
    if options.grid_size is not None and options.grid_size & (options.grid_size - 1):
        raise UserError(f"--grid_size {options.grid_size} is no power of two; give 64, 128 or 256.")


def _check_run(options):
    if options.test and options.ckpt == "scratch":
        raise UserError("--test needs trained weights, which --ckpt scratch leaves aside; drop one of the two.")
    if options.test_no_video and not options.test:
        raise UserError("--test_no_video says what --test leaves out; add --test.")
    if options.camera_path and (other := next((name for name in ("camera_traj", "video_frames") if name in options.given), None)):
        raise UserError(f"--camera_path says where the video's frames are, and so does --{other}; give one of them.")
    if options.eval_cnt > 0 and "val_checkpoint" in options.given:
        raise UserError("--eval_cnt and --val_checkpoint are two clocks for the same validations; give one of them.")


def _check_images(options):
    if "preload" in options.given and options.image_cache != "auto" and options.preload != (options.image_cache == "gpu"):
        switch = "--preload" if options.preload else "--no-preload"
        raise UserError(f"--image_cache {options.image_cache} and {switch} contradict each other; give one of them.")


def _check_sampling(options):
    if options.mark_untrained and options.contract:
        cause = "--contract" if "contract" in options.given else "-O2 (which contracts space)"
        raise UserError(f"--mark_untrained closes cells of uncontracted space and does not go with {cause}; drop one of the two.")


def _check_placement(options):
    """What acts on proposal networks needs them, and what acts on the march through an occupancy grid needs that."""
    if options.cuda_ray:
        cause = "--cuda_ray" if "cuda_ray" in options.given else "-O (which marches through an occupancy grid)"
        if named := _first_given(options, PROPOSAL_FLAGS):
            raise UserError(f"--{named} acts on sampling by proposal networks and does not go with {cause}; use -O2, or leave it out.")
        if "background" in options.given and options.background == "last_sample":
            raise UserError(f"--background last_sample lets the last sample of a ray fill what is behind it, and a ray has no last one with {cause}; give white or random.")
    elif named := _first_given(options, GRID_FLAGS):
        cause = "-O2 (which samples by proposal networks)" if options.O2 else "sampling by proposal networks"
        raise UserError(f"--{named} acts on the march through an occupancy grid and does not go with {cause}; use -O or --cuda_ray, or leave it out.")


def _first_given(options, names):
    """The first of the names that was typed and asks for something, or None."""
    return next((name for name in names if name in options.given and getattr(options, name) is not False), None)


def _check_mining(options):
    knobs = [name for name in options.given if name.startswith("hsm_")]
    if knobs and not options.hsm:
        raise UserError(f"--{knobs[0]} acts on hard sample mining, which is off; add --hsm.")
    if "hsm_fraction" in knobs and options.hsm_budget != "fixed":
        raise UserError(f"--hsm_fraction acts with --hsm_budget fixed, not with --hsm_budget {options.hsm_budget}; change one of the two.")
    if "hsm_fraction" in knobs and not options.hsm_floor <= options.hsm_fraction <= options.hsm_cap:
        limit = "floor" if options.hsm_fraction < options.hsm_floor else "cap"
        raise UserError(f"--hsm_fraction {value_text(options.hsm_fraction)} is beyond --hsm_{limit} {value_text(getattr(options, f'hsm_{limit}'))}; change one of the two.")
    if options.hsm_alpha and options.hsm_draw == "top":
        raise UserError("--hsm_alpha divides by the probability of being drawn, which --hsm_draw top does not have; drop one of the two.")
    if options.hsm_floor > options.hsm_cap:
        floor, cap = value_text(options.hsm_floor), value_text(options.hsm_cap)
        raise UserError(f"--hsm_floor {floor} is above --hsm_cap {cap}; lower the floor or raise the cap.")


def _check_poses(options):
    if "pose_lr" in options.given and not options.refine_poses:
        raise UserError("--pose_lr acts on the refinement of poses, which is off; add --refine_poses.")


def _check_export(options):
    if (options.test_no_mesh or options.export_points) and not options.test:
        name = "export_points" if options.export_points else "test_no_mesh"
        raise UserError(f"--{name} says what --test makes; add --test.")
    named = [name for name in MESH_FLAGS if name in options.given]
    if named and options.test_no_mesh:
        raise UserError(f"--{named[0]} shapes the mesh that --test_no_mesh leaves out; drop one of the two.")


def _check_device(options):
    if options.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device cuda finds no CUDA device that torch can use; give --device cpu, or auto.")
