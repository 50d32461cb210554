"""torch's optimizers without torch.compile.

Wrappers around their methods tell a compiler to leave them alone, and to say so load all of
torch.compile at the first call: a second of each start. Ours are never compiled themselves.
"""

from inspect import unwrap

import torch


class Optimizer(torch.optim.Optimizer):
    """torch's base class, of optimizers with a step of their own."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(Optimizer, torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter 2019)."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
