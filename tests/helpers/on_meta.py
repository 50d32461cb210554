"""What a function does on a device where tensors have no numbers: all that a graph can capture."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Log(TorchDispatchMode):
    """Notes each operation with its shapes, and that no tensor is on the host."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        self.operations.append((str(operation), [tuple(x.shape) for x in tensors]))
        assert {x.device.type for x in tensors} <= {"meta"}, operation
        return found
