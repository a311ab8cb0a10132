"""Which scene a checkpoint belongs to: a field learned in one frame of coordinates shows nothing sensible in another."""

from pathlib import Path

import torch

from nerf.errors import UserError

TOLERANCE = 1e-3  # of a pose's numbers, in world units; the cameras are within the unit ball


def scene_state(scene):
    """What tells a scene from others, for a checkpoint: {"names": of all photos, "poses": [n, 3, 4] float32 in the world, "train": names of those trained on}."""
    return {"names": _names(scene), "poses": torch.as_tensor(scene.cameras.poses).clone(), "train": _trained(scene)}


def check_scene(saved, scene, path, by_photo):
    """Raises UserError unless the photos that a checkpoint and our scene both have stand where they stood, and there are some.

    Args:
        saved: a `scene_state`; scene: nerf.scene.Scene; path: of the checkpoint.
        by_photo: whether the checkpoint holds something of each photo trained on (poses, appearance): then those must be the same ones.
    """
    remedy = "check the scene's folder, whether photos came or went, and --data_format, or give --ckpt scratch or another --workspace"
    poses, names = dict(zip(saved["names"], saved["poses"].cpu(), strict=True)), _names(scene)
    common = [index for index, name in enumerate(names) if name in poses]
    if not common:
        raise UserError(f"checkpoint {path} is of another scene: it knows {saved['names'][0]} and others, none of which is in {scene.root}; {remedy}.")
    apart = [(torch.as_tensor(scene.cameras.poses[index]) - poses[names[index]]).abs().max().item() for index in common]
    if max(apart) > TOLERANCE:
        name = names[common[apart.index(max(apart))]]
        raise UserError(f"checkpoint {path} is of a scene whose cameras stand elsewhere: that of {name} is off by {max(apart):.3g}; {remedy}.")
    if by_photo and saved["train"] != _trained(scene):
        raise UserError(
            f"checkpoint {path} holds poses or an appearance of each of its {len(saved['train'])} training photos, and those are not the "
            f"{len(scene.train)} here; give --train_split as then, or --ckpt scratch."
        )


def _names(scene):
    """The photos' names; of one that is an absolute path, what lies below the scene's folder, which may be moved."""
    root = scene.root.resolve()
    return [str(Path(name).relative_to(root)) if Path(name).is_relative_to(root) else name for name in scene.names]


def _trained(scene):
    names = _names(scene)
    return [names[index] for index in scene.train]
