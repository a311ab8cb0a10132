"""How far a lens reaches: beyond some distance from the principal point, distortion of a real fit may turn back, and then no ray leads to a pixel."""

import numpy as np

from nerf.scene.cameras import FISHEYE


def lens_reach(distortion, lens):
    """The greatest radius, in focal lengths, that a lens gives to rays in order: until there, a ray farther from the axis comes out farther away.

    distortion [6], lens: as a row of Cameras. Returns inf where there is no end. The tangential p1 and p2 are left out of account: they shift,
    by next to nothing in comparison.
    """
    radial = np.array([1, *distortion[:4]], dtype=np.float64)
    # Of r (1 + k1 r^2 + ...), with r the tangent of the angle to the axis or, for a fisheye, the angle, the slope is 1 + 3 k1 r^2 + 5 k2 r^4 + ...
    roots = np.roots((radial * (1, 3, 5, 7, 9))[::-1])
    turns = roots.real[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0)]
    last = np.sqrt(turns.min(initial=np.inf))
    if lens == FISHEYE:
        last = min(last, np.pi)
    return float(last * np.polyval(radial[::-1], last**2)) if np.isfinite(last) else np.inf


def beyond_reach(cameras, i, pixels):
    """[p] bool: which pixels [p,2] of camera i of Cameras have no ray that the lens leads there."""
    focal, principal = cameras.intrinsics[i, :2].astype(np.float64), cameras.intrinsics[i, 2:].astype(np.float64)
    return np.linalg.norm((pixels - principal) / focal, axis=1) > lens_reach(cameras.distortion[i], cameras.lens[i])
