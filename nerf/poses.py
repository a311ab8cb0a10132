"""Camera-pose refinement: a small correction of each training photo's pose, learned with the field (Lin et al. 2021, BARF; as SO(3) x R^3 in
Nerfacto, Tancik et al. 2023).

A photo's twist is (w, v): a rotation vector in radians and a translation in world units, both about the world's axes. Its pose [R | o] becomes
[Exp(w) R | o + v]. Rays are drawn from the refined poses; what the field then says of the samples leads back to the twists.
"""

import json
import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nerf.files import write_file

TERMS = 14  # of the power series in |w|^2: to float32's precision up to half a turn, to 1e-5 up to a whole one
SERIES = [[(-1) ** k / math.factorial(2 * k + n) for k in range(TERMS)] for n in (1, 2, 3)]
WARM_STEPS = 1000  # over which corrections grow to their full pace: a field that shows nothing yet only pushes cameras about
RANK = 1e-6  # a motion whose singular value is smaller than this, relative to the largest, moves nothing


class PoseRefinement(nn.Module):
    """The twists of the photos that are trained on, zero at first.

    A similarity of all cameras together (shift, turn, size) is nothing that the photos tell: the field follows it, the held-out cameras do not. So `settle` takes
    this part out of the twists, to first order, by least squares with a radian worth a world unit (the cameras lie in a ball of about one).

    Nothing here waits for the device, and no address changes.

    Args:
        poses: [V, 3, 4] float32 camera-to-world of all views.
        views: [n] int64 on the device of `poses`, the views that are trained on, in the order of Samples.image.
        contract: whether samples lie in contracted space (raymarching.contract).
    Attributes:
        twists: [n, 6] parameter, (w, v) of each.
        refined: [V, 3, 4], like poses: the refined ones, and the others as they are. Always the same tensor.
    """

    def __init__(self, poses, views, contract):
        super().__init__()
        self.contract = contract
        base = poses.index_select(0, views)
        self.twists = nn.Parameter(torch.zeros(len(views), 6, dtype=poses.dtype, device=poses.device))
        similarities = similarity_motions(base[:, :, 3].double().cpu()).to(base)
        constants = {
            "views": views, "base": base, "refined": poses.clone(), "similarities": similarities,
            "exponents": torch.arange(TERMS).to(base), "table": torch.tensor(SERIES, dtype=torch.float64).to(base),
            "series": base.new_zeros(len(views), 3), "settled": torch.zeros_like(self.twists),
        }  # fmt: skip
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.refresh()

    @torch.no_grad()
    def settle(self, step):
        """Takes in what an optimiser made of the twists: damped in the first steps, and without their common similarity, they make the refined poses.

        step: [1] float32, how many steps came before.
        """
        flat = self.settled.view(-1)
        self.settled.lerp_(self.twists, (step / WARM_STEPS).clamp(max=1))
        flat.sub_(self.similarities @ (flat @ self.similarities))
        self.twists.copy_(self.settled)
        self.refresh()

    @torch.no_grad()
    def load(self, twists):
        """Continues from twists [n, 6], of any device, that `settle` had taken in."""
        self.twists.copy_(twists)
        self.settled.copy_(twists)
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Makes the refined poses of the twists as they are (Rodrigues' formula, its coefficients by power series, which know no special case at zero)."""
        w, v = self.twists.split(3, dim=1)
        power = w.square().sum(dim=1).view(-1, 1, 1) ** self.exponents
        torch.sum(power * self.table, dim=2, out=self.series)
        sine, cosine = (self.series[:, k].view(-1, 1, 1) for k in (0, 1))
        rotation, origin = self.base[:, :, :3], self.base[:, :, 3]
        turned = torch.linalg.cross(w[:, :, None], rotation, dim=1)
        turned_twice = torch.linalg.cross(w[:, :, None], turned, dim=1)
        rotation = torch.addcmul(torch.addcmul(rotation, sine, turned), cosine, turned_twice)
        self.refined.index_copy_(0, self.views, torch.cat([rotation, (origin + v)[:, :, None]], dim=2))

    def attach(self, samples):
        """The same samples, through whose positions and directions gradients reach the twists.

        To the twists, a sample is x = o + v + t d with d = Exp(w) R p for a fixed p and t, contracted where samples are: where along a ray samples lie has
        no gradient. Padding has none either. The many samples of a photo add up in the twists' dtype.

        Args:
            samples: nerf.samples.Samples with `image`, drawn from `refined` as it is.
        """
        positions, directions = _Attached.apply(self.twists, samples.positions, samples.directions, samples, self.series, self.contract)
        return samples.at(positions, directions)

    def save(self, path, names):
        """Writes names [n] of the photos -> {"twist": [6], "camera_to_world": [3][4]}, refined, in the world, as JSON. Raises UserError where it cannot."""
        twists, poses = self.twists.detach().tolist(), self.refined.index_select(0, self.views).tolist()
        entries = {name: {"twist": twist, "camera_to_world": pose} for name, twist, pose in zip(names, twists, poses, strict=True)}
        write_file(path, (json.dumps(entries, indent=1) + "\n").encode())


class _Attached(torch.autograd.Function):
    """(positions, directions) as they are, and the way from their gradients to the twists."""

    @staticmethod
    def forward(ctx, twists, positions, directions, samples, series, contract):
        ctx.save_for_backward(twists, positions, directions, samples.t, samples.ray_index, samples.image, series)
        ctx.contract = contract
        ctx.set_materialize_grads(False)
        return positions.view_as(positions), directions.view_as(directions)

    @staticmethod
    @once_differentiable
    def backward(ctx, force, turn):
        twists, positions, directions, t, ray_index, image, series = ctx.saved_tensors
        force = torch.zeros_like(positions) if force is None else force
        if ctx.contract:
            force = before_contraction(force, positions)
        lever = t[:, None] * force if turn is None else torch.addcmul(turn, t[:, None], force)
        # A rotation dw after the present one moves d by dw x d.
        each = torch.cat([torch.linalg.cross(directions, lever, dim=1), force], dim=1)
        each = torch.where(ray_index[:, None] >= 0, each, 0)
        total = torch.zeros_like(twists).index_add_(0, image, each)
        # Exp(w + dw) = Exp(J dw) Exp(w) with J = I + b [w] + c [w]^2 (Sola et al. 2018, A micro Lie theory, eq. 145), of which this is the transpose.
        w, torque = twists[:, :3], total[:, :3]
        turned = torch.linalg.cross(w, torque, dim=1)
        turned_twice = torch.linalg.cross(w, turned, dim=1)
        torque.sub_(series[:, 1:2] * turned).addcmul_(series[:, 2:], turned_twice)
        return total, None, None, None, None, None


def before_contraction(gradient, positions):
    """The gradient with respect to points before contraction, of a gradient [M, 3] at the contracted points, positions [M, 3].

    With m the max-norm before contraction, k its axis and s the sign there, the Jacobian's transpose takes g to (g + (g_k - s g . positions) e_k) / m outside the
    unit cube. All of it follows from the contracted point, whose own max-norm is 2 - 1 / m.
    """
    most, axis = positions.abs().max(dim=1, keepdim=True)
    along = (gradient * positions).sum(dim=1, keepdim=True)
    bend = gradient.gather(1, axis) - positions.gather(1, axis).sign() * along
    bent = gradient.scatter_add(1, axis, torch.where(most > 1, bend, 0))
    return (2 - most).clamp(max=1) * bent


def similarity_motions(origins):
    """Orthonormal columns [6 n, up to 7] that span the twists of cameras at origins [n, 3] which, to first order, are one similarity of all of them."""
    n = len(origins)
    arms = origins - origins.mean(dim=0)
    motions = origins.new_zeros(7, n, 6)
    for k, axis in enumerate(torch.eye(3).to(origins)):
        motions[k, :, :3] = axis
        motions[k, :, 3:] = torch.linalg.cross(axis.expand(n, 3), arms, dim=1)
        motions[3 + k, :, 3:] = axis
    motions[6, :, 3:] = arms
    basis, size, _ = torch.linalg.svd(motions.view(7, -1).T, full_matrices=False)
    return basis[:, size > RANK * size.max()]
