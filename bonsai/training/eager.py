"""torch's optimizers without torch.compile.

torch wraps their methods to tell the compiler to leave them alone. At the first call these wrappers
import all of torch.compile, which takes a second of each start. Ours are never compiled, so that
the wrappers are not needed.
"""

from inspect import unwrap

import torch


class Optimizer(torch.optim.Optimizer):
    """torch's base class, for optimizers with a step of their own."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(Optimizer, torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter 2019)."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
