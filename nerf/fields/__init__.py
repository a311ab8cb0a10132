"""What is learned. nerf.fields.base.Field is the interface; a new field is one file here and one line in FIELDS (docs/new_field.md)."""

from nerf.errors import UserError
from nerf.fields.base import Field
from nerf.fields.merf import MeRFField
from nerf.fields.ngp import NGPField
from nerf.fields.proposal import ProposalField

__all__ = ["FIELDS", "Field", "MeRFField", "NGPField", "ProposalField", "build_field"]

FIELDS = {"merf": MeRFField, "ngp": NGPField}  # by the name of --backbone


def build_field(name, bound, log2_table_size=19, half=False, appearance=0, images=0, unseen="mean"):
    """A fresh field by the name of its backbone.

    Args:
        name: a key of FIELDS.
        bound: half side of the cube in which positions lie; 2 where the sampler contracts space.
        log2_table_size: logarithm of the entries of a hashed level.
        half: run encodings and networks in float16.
        appearance, images, unseen: as in NGPField.
    Returns:
        Field, on the CPU.
    Raises:
        UserError: there is no such backbone, or it has no appearance where some is asked for.
    """
    if name not in FIELDS:
        raise UserError(f"--backbone {name} is not known; choose one of {', '.join(sorted(FIELDS))}.")
    if appearance and not FIELDS[name].has_appearance:
        raise UserError(f"--appearance {appearance} is not for the backbone {name}, which has none; leave it out or choose another --backbone.")
    settings = {"appearance": appearance, "images": images, "unseen": unseen} if appearance else {}
    return FIELDS[name](bound, log2_table_size, half, **settings)
