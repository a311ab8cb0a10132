"""Colours of a surface: what the field shows of it to the training camera that looks at it most squarely."""

import numpy as np
import torch

from nerf import volume
from nerf.samples import Packing, Samples

BEFORE, BEHIND = 1.0, 3.0  # cells of the grid before and behind the surface between which the field is composited
STEPS = 8
AT_ONCE = {"cuda": 2**16, "cpu": 2**13}  # points together
FAINT = 1e-3


@torch.no_grad()
def surface_colours(field, space, points, normals, spacing, places):
    """Colours [V, 3] float32 in [0, 1] of points on a field's surface.

    A colour taken at one point is that of the haze before the surface as often as that of the surface. So a short ray through the point is
    composited, along the direction in which the training camera nearest to the normal sees it (whether or not something stands between
    them): a field knows colours along directions that it was shown.

    Args:
        field: nerf.fields.Field, in evaluation mode; space: Space.
        points [V, 3], normals [V, 3] unit, spacing [V], float32 tensors on the device, world; places: [n, 3], where the cameras are.
    """
    chunk = AT_ONCE[points.device.type]
    parts = zip(points.split(chunk), normals.split(chunk), spacing.split(chunk))
    return np.concatenate([_colours(field, space, *part, places).cpu().numpy() for part in parts] or [np.zeros((0, 3), np.float32)])


def _colours(field, space, points, normals, spacing, places):
    count, device = len(points), points.device
    towards = torch.nn.functional.normalize(places[None] - points[:, None], dim=-1)
    best = (towards * normals[:, None]).sum(dim=-1).argmax(dim=1)
    directions = -towards[torch.arange(count, device=device), best]
    step = (BEFORE + BEHIND) / STEPS * spacing
    offset = (torch.arange(STEPS, device=device) + 0.5) * step[:, None] - BEFORE * spacing[:, None]
    positions = space.to_field((points[:, None] + offset[..., None] * directions[:, None]).view(-1, 3))
    each = directions.repeat_interleave(STEPS, dim=0)
    ray = torch.arange(count, dtype=torch.int32, device=device)
    t = offset + BEFORE * spacing[:, None] + step[:, None]  # positive, as distances along a ray are
    samples = Samples(positions, each, t.view(-1), step.repeat_interleave(STEPS), ray.repeat_interleave(STEPS))
    rows = torch.stack([ray * STEPS, torch.full_like(ray, STEPS)], dim=1)
    packing = Packing(rows, torch.tensor([count * STEPS, count, count * STEPS], dtype=torch.int32, device=device))
    seen = volume.composite(field(samples), samples, packing, 0.0)
    opaque = seen.features / seen.opacity.clamp(min=FAINT)[:, None]
    return field.shade(opaque, torch.ones_like(seen.opacity), directions).clamp(0, 1)
