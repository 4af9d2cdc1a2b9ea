"""The decode step, any function of no arguments, compiled, and on a GPU captured as a CUDA graph."""
from collections.abc import Callable

import torch


class CompiledStep:
    """
    A step that goes through torch.compile and, on a GPU, is replayed as a CUDA graph. It changes its tensors
    in place and never waits for the device. shape() tells of all that is baked into a captured step: the
    tensors are the same objects as long as it returns the same.
    """

    def __init__(self, step: Callable, shape: Callable, device: torch.device):
        # sizes equal by chance stay apart: one compilation for all
        torch.fx.experimental._config.use_duck_shape = False
        self.step, self.shape = torch.compile(step, dynamic=True), shape
        self.captures = device.type == 'cuda'
        self.captured_shape = self.graph = None

    def __call__(self):
        if not self.captures:
            return self.step()
        if self.shape() != self.captured_shape:
            self.captured_shape, self.graph = self.shape(), None
            return self.step()  # the first step of a shape warms up
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
        self.graph.replay()
