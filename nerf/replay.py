"""Work for the device, recorded once as a CUDA graph and replayed: the host sends one launch where it sent hundreds.

What is recorded must never wait for the device, must keep every shape, and must read and write the same tensors each time: what varies from one
run to the next lives in those tensors, or in a random generator that the graph knows.
"""

import torch

from nerf.errors import UserError

WARM_RUNS = 2  # eager ones before a recording, in which libraries load kernels and make their handles and workspaces


class Replay:
    """Runs work from graphs, one graph a key.

    Args:
        device: torch.device; anything but a CUDA device runs the work as it is.
        enabled: False also runs it as it is.
        generators: the torch.Generators on the device that the work draws from.
    """

    def __init__(self, device, enabled, generators):
        self.enabled = enabled and device.type == "cuda"
        self.generators = generators
        self.graphs, self.runs = {}, {}
        if self.enabled:
            self.stream = torch.cuda.Stream(device)
            # One pool of memory for all graphs: no two run at once, and none leaves anything behind in it.
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, name, work, variant=None):
        """Runs work(). `name` says what it is; `variant` is any value on which its shapes depend: for both the same, it does the same."""
        if not self.enabled:
            work()
            return
        key = name, variant
        if key in self.graphs:
            self.graphs[key].replay()
            return
        self.runs[key] = self.runs.get(key, 0) + 1
        if self.runs[key] <= WARM_RUNS:
            self._on_own_stream(work)
            return
        self.graphs[key] = self._record(work)
        self.graphs[key].replay()

    def _on_own_stream(self, work):
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            work()
        self._wait_for_own_stream()

    def _wait_for_own_stream(self):
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def _record(self, work):
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"The training step could not be recorded as a CUDA graph ({reason}); train with --no-graph.") from error
        self._wait_for_own_stream()  # torch has zeroed the generators' offsets there, which a replay sets
        return graph

    def forget(self):
        """Drops what was recorded, with its memory; it is recorded again when it is next run."""
        if self.enabled:
            self.graphs = {}
            self.pool = torch.cuda.graph_pool_handle()

    def memory(self):
        """Bytes of device memory that the graphs hold for their intermediate results."""
        if not self.graphs:
            return 0
        ours = [segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) == tuple(self.pool)]
        return sum(segment["total_size"] for segment in ours)
