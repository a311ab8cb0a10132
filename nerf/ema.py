"""A running mean of a module's parameters, which evaluation uses."""

import contextlib

import torch


class ExponentialMovingAverage:
    """Follows parameters with `mean <- d mean + (1 - d) parameter`; d grows to `decay` as (1 + n) / (20 + n).

    So the mean spans about the last twentieth of the updates so far, until `decay` holds it. Twice as long it lags behind what is still being learned, and
    shorter it leaves noise in, more of it the fewer samples a step learns from.
    """

    def __init__(self, module, decay):
        self.module, self.decay, self.updates = module, decay, 0
        self.parameters = list(module.parameters())
        self.mean = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self):
        """Takes the parameters in; runs on the device without waiting."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (20 + self.updates))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def swapped(self):
        """While this holds, the module has the mean in place of its parameters, and is in evaluation mode: copies of its parameters are not to be used."""
        training = self.module.training
        self._swap()
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for parameter, mean in zip(self.parameters, self.mean):
            parameter.data, mean.data = mean.data, parameter.data

    def state_dict(self):
        """Tensors and plain numbers."""
        return {"updates": self.updates, "mean": self.mean}

    @torch.no_grad()
    def load_state_dict(self, state):
        self.updates = int(state["updates"])
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)
