"""What every field is: the one interface that sampling, mining, training and rendering know."""

import torch
from torch import nn
from torch.nn import functional as F

import fusedfield
from gridencoder import add_total_variation_gradient, add_weight_decay_gradient
from nerf.errors import UserError

GRANULE = 8  # tensor cores are several times faster where the widths of a half matrix are multiples of eight


class Field(nn.Module):
    """What is learned. Derive from this, define `forward`, `density` and `signature`, and add a line to nerf.fields.FIELDS. The
    constructor of a field in FIELDS takes (bound, log2_table_size, half).

    C = `channels`: a density logit and C - 1 logits of features, which are composited after a sigmoid. Positions lie in [-bound, bound]^3: the
    field never contracts space, the sampler has done so (bound is 2 there). All of it is differentiable with respect to the parameters, and to
    positions and directions where those ask for it; samples outside the cube, or NaN, have no gradient.

    Args:
        bound: half side of the cube in which positions lie.
        half: run encodings and networks in float16, by autocast; parameters stay float32.
    Attributes:
        bound, half: as given.
        channels: C, 4 unless a field says otherwise.
        deferred: whether `shade` does more than hand three colours on.
        fused: whether kernels that do several layers at once may take the place of the modules (see `runs_fused`). The modules are the definition.
        density_start: log density that an untrained field has everywhere, if it heeds that; 0 unless set. How dense is best depends on the sampler.
        has_appearance: whether the constructor takes appearance, images and unseen, as NGPField's does.
        grid: the 3-D GridEncoder that the regularisers act on; a field need not have one.
    """

    channels = 4
    deferred = False
    fused = False
    density_start = 0.0
    has_appearance = False

    def __init__(self, bound, half=False):
        super().__init__()
        self.bound, self.half = bound, half

    def forward(self, samples):
        """nerf.samples.Samples of M rows -> raw [M, C], before any activation: column 0 is the logarithm of density (1 / world unit). Float16 where
        the field runs in half. Rows are independent of each other: mining asks again for some of them."""
        raise NotImplementedError

    def density(self, positions):
        """Positions [K, 3] float32 -> logarithm of density [K]: what `forward` gives in column 0."""
        raise NotImplementedError

    def learn(self, samples, gradient, count=None):
        """Accumulates the parameters' gradients, as `forward(samples).backward(gradient)` does; a field may know a shorter way.

        Args:
            samples: Samples of M rows; gradient: [M, C] float32, a loss's gradient at raw.
            count: [1] int32, how many of the rows are in use, or None: all. Beyond, the gradient is zero.
        """
        raw = self(samples)
        raw.backward(gradient.to(raw.dtype))

    def render_rays(self, rays, bitfield, march, T_thresh):
        """Whole rays through occupied cells at once, where a field has a kernel for it; None where it has not.

        Args:
            rays: nerf.samples.Rays, N of them; bitfield, march: as of `fusedfield.ngp_render`; T_thresh: transmittance at which a ray stops.
        Returns:
            None, or what is composited: features [N, C - 1], opacity [N], depth [N] (not divided by opacity), float32.
        """
        return

    def runs_fused(self, device):
        """Whether the fused kernels run on a device: they are asked for, compute in half as the field does, and fit the GPU."""
        return self.fused and self.half and fusedfield.available(device)

    def signature(self):
        """What a checkpoint must agree on to fit this field: a dict of plain values, "backbone" among them."""
        raise NotImplementedError

    def shade(self, features, opacity, directions):
        """From what was composited to the colour of each ray, without a background.

        Args:
            features: [N, C - 1] float32, sums of weights times sigmoids along each ray.
            opacity: [N] float32, sums of weights.
            directions: [N, 3] float32, unit length.
        Returns:
            [N, 3] float32, times opacity, as the features are; differentiable with respect to the features, opacity and parameters.
        """
        return features

    def add_total_variation_gradient(self, positions, weight):
        """Adds the gradient of weight [1] times the total variation of `grid`'s cells at positions [P, 3] to the table's gradient.

        Raises:
            UserError: the field has no such grid.
        """
        grid = self._regularised("--lambda_tv")
        add_total_variation_gradient(grid.table, gradient_of(grid.table), grid.offsets, grid.resolutions, self._unit(positions), weight)

    def add_weight_decay_gradient(self, weight):
        """Adds the gradient of weight [1] times the mean square of each level's entries of `grid`.

        Raises:
            UserError: the field has no such grid.
        """
        grid = self._regularised("--lambda_wd")
        add_weight_decay_gradient(grid.table, gradient_of(grid.table), grid.offsets, weight)

    def _regularised(self, flag):
        if not hasattr(self, "grid"):
            raise UserError(f"{flag} is for fields with a hash grid, which the backbone {self.signature()['backbone']} has not; leave it out.")
        return self.grid

    def _precision(self, tensor):
        return torch.autocast(tensor.device.type, dtype=torch.float16, enabled=self.half)

    def _unit(self, positions):
        """Positions in the cube -> [0, 1]^3, where grids live."""
        return (positions + self.bound) / (2 * self.bound)

    def _grid_arguments(self):
        """`grid` as the operators of fusedfield take it."""
        grid = self.grid
        return grid.half_table(), grid.offsets, grid.resolutions, self.bound


def matrices(*networks):
    """The weights of networks without biases, in order."""
    return [part.weight for layers in networks for part in layers if isinstance(part, nn.Linear)]


def layer(inputs, outputs, bias=False):
    """A linear layer that neither shrinks nor swells what a ReLU hands on (He et al. 2015, equation 10). With torch's own start, each layer of a
    network hands on two fifths, and what the network makes of the grid grows slowly: fog before the cameras takes long to clear."""
    made = nn.Linear(inputs, outputs, bias=bias)
    nn.init.kaiming_uniform_(made.weight, nonlinearity="relu")
    return made


def network(inputs, hidden, outputs, bias=False):
    """A plain ReLU network, without biases unless asked for."""
    sizes = [inputs, *hidden]
    layers = []
    for size, following in zip(sizes, hidden):
        layers += [layer(size, following, bias), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, layer(sizes[-1], outputs, bias))


def run_padded(layers, x, skip=0):
    """A `network` without biases, its matrices widened by zeros to multiples of GRANULE: what they drop or weigh nothing is cheaper than what
    odd widths cost.

    Args:
        layers: the network, of I inputs and O outputs.
        x: [M, K], K a multiple of GRANULE: `skip` columns that weigh nothing, I inputs, and columns beyond that weigh nothing.
    Returns:
        [M, O].
    """
    first, *middle, last = (part for part in layers if isinstance(part, nn.Linear))
    x = torch.relu_(F.linear(x, F.pad(first.weight, (skip, x.shape[1] - skip - first.in_features))))
    for part in middle:
        x = torch.relu_(part(x))
    return F.linear(x, F.pad(last.weight, (0, 0, 0, -last.out_features % GRANULE)))[:, : last.out_features]


def add_gradients(weights, flat):
    """Adds gradients that lie one after the other in a flat tensor to those of the weights."""
    for weight, gradient in zip(weights, fusedfield.split_like(flat, weights), strict=True):
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


def gradient_of(parameter):
    """The parameter's gradient, made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
