"""A guard against waiting for a GPU, on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waiting(TorchDispatchMode):
    """Fails at what would have to wait for a GPU: a tensor's values as numbers of the program, or
    as the shape of another tensor."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        assert not tags & set(function.tags), f"{function} waits for the device"
        self.calls.append(function.name())
        return function(*args, **(kwargs or {}))
