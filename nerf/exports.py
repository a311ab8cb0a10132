"""What --test takes out of a field beside pictures: a mesh and a point cloud."""

import sys

from nerf.errors import UserError
from nerf.mesh import export_mesh
from nerf.option_checks import MESH_FLAGS
from nerf.points import export_points


def make_exports(trainer, alone):
    """Writes a trainer's WORKSPACE/mesh, unless --test_no_mesh, and WORKSPACE/points, with --export_points.

    What cannot be made costs a sentence on standard error; the rest is made.

    Args:
        alone: no other file is to come.
    Raises:
        UserError: alone, and nothing could be made of what the person's flags asked for by name.
    """
    options = trainer.options
    wanted = [] if options.test_no_mesh else [(export_mesh, "mesh")]
    if options.export_points:
        wanted.append((export_points, "points"))
    asked_for = alone and any(name in options.given for name in (*MESH_FLAGS, "export_points"))
    refused = []
    with trainer.ema.swapped():
        for make, name in wanted:
            try:
                make(trainer.model, trainer.scene, options, trainer.device, trainer.folder / name, print)
            except UserError as error:
                refused.append(error)
    last = refused.pop() if asked_for and refused and len(refused) == len(wanted) else None
    for error in refused:
        print(f"main.py: {error}", file=sys.stderr)
    if last:
        raise last
