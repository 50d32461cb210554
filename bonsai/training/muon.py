"""Muon for the matrices and AdamW for everything else, as one optimizer, sharded over processes.

Muon is meant for the matrices of the blocks, and its step is in orthogonal.py; embeddings, head,
gains and other small parameters are left to AdamW, each kind with its own learning rate.

Each process owns a share of every tensor: it receives the mean gradient of its share
(reduce-scatter), keeps only that share's moments, updates it, and gathers what the others updated
(all-gather), as in ZeRO (Rajbhandari et al. 2020). With one process the same code runs without the
communication. state_dict() holds whole tensors, so a run can be resumed with another number of
processes.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from bonsai.training.adam import KernelAdamW, fastest_adamw
from bonsai.training.eager import AdamW, Optimizer
from bonsai.training.orthogonal import Fixed, Rates, fastest_product, update_in_place

# by the names of newer releases of torch, which warn about the older ones
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

ADAM_SETTINGS = ("lr", "weight_decay", "betas", "eps")  # of a group of kind adamw


class Share:
    """This process's share of a buffer (items, ...): rank r owns c = ceil(items / world) items,
    from item r c on. `local` is a view of them."""

    def __init__(self, items: torch.Tensor, rank: int, world: int):
        self.world, self.count, size = world, len(items), -(-len(items) // world)
        if world == 1:
            self.buffer = items
        else:  # padded, so that all shares are equal
            self.buffer = items.new_zeros(size * world, *items.shape[1:])
            self.buffer[: len(items)] = items
        self.local = self.buffer[rank * size : (rank + 1) * size]
        self.rank, self.size = rank, size

    def reduce(self, grad: torch.Tensor):
        """Start to average grad (items, ...) over the processes. Returns this process's share of
        the average and a handle to wait for it (None: it is complete); see `wait`."""
        if self.world == 1:
            return grad, None
        full = torch.zeros_like(self.buffer)
        full[: self.count] = grad
        full /= self.world
        if dist.get_backend() == "gloo":  # has no reduce-scatter
            handle = dist.all_reduce(full, async_op=True)
            return full[self.rank * self.size :][: self.size], handle
        local = torch.empty_like(self.local)
        return local, reduce_scatter(local, full, async_op=True)

    def gather(self, local: torch.Tensor | None = None):
        """Start to collect the shares of all processes: those of the buffer, in place; or, if
        `local` is this process's share of another tensor, those of that tensor, in a new one.
        Returns the tensor in which they are collected, and a handle as `reduce` does."""
        if self.world == 1:
            return (self.buffer if local is None else local), None
        full = self.buffer
        if local is not None:
            full = local.new_empty(self.world * len(local), *local.shape[1:])
        local = (self.local if local is None else local).clone()
        return full, all_gather(full, local, async_op=True)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's share of another tensor (items, ...) with the same number of items."""
        padded = whole.new_zeros(self.size * self.world, *whole.shape[1:])
        padded[: len(whole)] = whole
        return padded[self.rank * self.size :][: self.size].clone()


class Stack(NamedTuple):
    """Matrices of one shape in one buffer; each parameter is a view of a part of it."""

    group: dict
    params: list[torch.nn.Parameter]
    share: Share


class Flat(NamedTuple):
    """A parameter that AdamW updates, as a vector."""

    param: torch.nn.Parameter
    share: Share
    local: torch.nn.Parameter  # this process's share, which its AdamW updates


class Muon(Optimizer):
    """One optimizer over groups of parameters with 'kind' 'muon' or 'adamw'.

    All groups have lr and weight_decay. Groups of kind muon also have momentum, coefficients,
    cautious and, for NorMuon, neuron_beta; groups of kind adamw have betas and eps. Weight decay is
    decoupled; `cautious` (Chen et al. 2025) decays a weight only where its update, too, moves it
    towards 0. If the attribute found_inf is a tensor of 1 (the gradient is not finite), a step
    changes nothing; whether it is need not be known on the host, so nothing waits for the device.
    """

    sharded = True  # averages the gradients itself: no DistributedDataParallel
    _step_supports_amp_scaling = True  # tells GradScaler that step() looks at found_inf

    def __init__(self, groups: list[dict], dtype: torch.dtype, compile: bool = False):
        """dtype: of the matrix products. compile: whether to torch.compile the updates."""
        super().__init__(groups, {})
        self.dtype = dtype
        self.update_in_place = torch.compile(update_in_place) if compile else update_in_place
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.stacks: list[Stack] = []
        self.flats: list[Flat] = []
        # for each group the numbers of its stacks, in lists of those that are orthogonalized as one
        self.families: list[tuple[dict, list[list[int]]]] = []
        adam_groups = []
        for group in self.param_groups:
            if group["kind"] == "muon":
                self.families.append((group, self.stack_group(group)))
            else:
                adam_groups.append(self.flatten_group(group))
        plain = AdamW(adam_groups or [{"params": []}], fused=True)
        self.adam = fastest_adamw(plain)
        self.momenta = [torch.zeros_like(share.local) for _, _, share in self.stacks]
        self.squares = [  # of even_out; None without it
            share.local.new_zeros(*share.local.shape[:2], 1) if group.get("neuron_beta") else None
            for group, _, share in self.stacks
        ]
        self.grads: list[torch.Tensor] | None = None  # of the shares: stacks, then flats

    def stack_group(self, group: dict) -> list[list[int]]:
        """Make the matrices of a group views of stacks. Returns which stacks are orthogonalized as
        one: lists of their numbers."""
        by_shape: dict[tuple, list] = {}
        for p in group["params"]:
            by_shape.setdefault((getattr(p, "row_block", len(p)), p.size(1)), []).append(p)
        alike: dict[tuple, list[int]] = {}
        for shape, params in by_shape.items():
            share = Share(stack([p.detach() for p in params], params), self.rank, self.world)
            for p, whole in zip(params, unstack(share.buffer, params)):
                p.data = whole
            # on a GPU transposed ones join those of their shape; on a CPU copying costs too much
            on_cpu = share.local.device.type == "cpu"
            key = shape if on_cpu else tuple(sorted(shape))
            alike.setdefault(key, []).append(len(self.stacks))
            self.stacks.append(Stack(group, params, share))
        return list(alike.values())

    def flatten_group(self, group: dict) -> dict:
        """Make the parameters of a group views of vectors. Returns the group for AdamW: this
        process's shares of them."""
        shares = []
        for p in group["params"]:
            share = Share(p.detach().flatten(), self.rank, self.world)
            p.data = share.buffer[: p.numel()].view(p.shape)
            shares.append(torch.nn.Parameter(share.local))
            self.flats.append(Flat(p, share, shares[-1]))
        return {"params": shares, **{k: group[k] for k in ADAM_SETTINGS}}

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Average the gradients over the processes and scale them down to a norm of max_norm (0:
        don't); returns the norm before. A KernelAdamW scales its gradients in its step."""
        pending = []
        for _, params, share in self.stacks:
            pending.append(share.reduce(stack([p.grad for p in params], params)))
        for p, share, _ in self.flats:
            pending.append(share.reduce(p.grad.flatten()))
        self.grads = list(map(wait, pending))
        norm = torch.nn.utils.get_total_norm(self.grads)
        if self.world > 1:
            squares = norm.square()
            dist.all_reduce(squares)
            norm = squares.sqrt()
        scaled = self.grads if max_norm else []
        if isinstance(self.adam, KernelAdamW):
            self.adam.clip = (norm, max_norm) if max_norm else None
            scaled = scaled[: len(self.stacks)]
        if scaled:
            torch._foreach_mul_(scaled, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update with the gradients of the last clip_gradients()."""
        assert self.grads is not None, "clip_gradients() comes before step()"
        bad = getattr(self, "found_inf", None)  # GradScaler deletes it after each step
        adam_groups = [g for g in self.param_groups if g["kind"] == "adamw"]
        for inner, group in zip(self.adam.param_groups, adam_groups):
            inner.update({k: group[k] for k in ADAM_SETTINGS})
        for flat, grad in zip(self.flats, self.grads[len(self.stacks) :]):
            flat.local.grad = grad
        self.adam.grad_scale, self.adam.found_inf = None, bad
        self.adam.step()
        self.adam.zero_grad()
        for group, families in self.families:
            self.update(group, families, bad)
        pending = [each.share.gather() for each in (*self.stacks, *self.flats)]
        for each in pending:
            wait(each)
        self.grads = None

    def update(self, group: dict, families: list[list[int]], bad: torch.Tensor | None) -> None:
        """Muon's part of the step, for the stacks of one group."""
        weights = [share.local for _, _, share in self.stacks]
        device, mu, decay = weights[0].device, group["momentum"], group["weight_decay"]
        # torch.full, because a copy of a tensor made on the host might wait for the device
        numbers = [torch.full((), v, device=device) for v in (group["lr"], decay, mu, 1 - mu)]
        on = torch.ones((), device=device) if bad is None else 1.0 - bad
        fixed = Fixed(
            coefficients=group["coefficients"],
            dtype=self.dtype,
            decays=decay > 0,
            cautious=group["cautious"],
            neuron_beta=group.get("neuron_beta", 0.0),
            product=fastest_product(device, self.dtype),
        )
        kinds = weights, self.grads, self.momenta, self.squares
        tensors = [
            tuple([kind[i] for i in family if kind[i] is not None] for kind in kinds)
            for family in families
        ]
        self.update_in_place(tensors, Rates(*numbers, on), fixed)

    # ---- the state: whole tensors, however many processes there are ----

    def numbers(self) -> dict[torch.nn.Parameter, int]:
        """The number of each parameter in a state_dict: they are counted group by group."""
        params = [p for group in self.param_groups for p in group["params"]]
        return {p: number for number, p in enumerate(params)}

    def state_dict(self) -> dict:
        """As torch's, with whole tensors; all processes must call it."""
        state, number = {}, self.numbers()
        for kind, moments in (("momentum", self.momenta), ("square", self.squares)):
            for (_, params, share), local in zip(self.stacks, moments):
                if local is not None:
                    full = wait(share.gather(local))
                    for p, whole in zip(params, unstack(full, params)):
                        state.setdefault(number[p], {})[kind] = whole.clone()
        for p, share, local in self.flats:
            if moments := self.adam.state.get(local):
                state[number[p]] = {
                    k: v.clone()
                    if k == "step"
                    else wait(share.gather(v))[: p.numel()].view(p.shape).clone()
                    for k, v in moments.items()
                }
        groups = []
        for group in self.param_groups:
            plain = {k: v for k, v in group.items() if k not in ("params", "coefficients")}
            groups.append({**plain, "params": [number[p] for p in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the moments; learning rates and the like stay as they are set now."""
        state, number = state_dict["state"], self.numbers()
        for kind, moments in (("momentum", self.momenta), ("square", self.squares)):
            for (_, params, share), local in zip(self.stacks, moments):
                if local is not None:
                    saved = [state[number[p]][kind].to(p) for p in params]
                    local.copy_(share.of(stack(saved, params)))
        for p, share, local in self.flats:
            if number[p] in state:
                self.adam.state[local] = {
                    k: v.to(p.device, torch.float32).clone()
                    if k == "step"
                    else share.of(v.to(p).flatten())
                    for k, v in state[number[p]].items()
                }


def stack(tensors: list[torch.Tensor], params: list) -> torch.Tensor:
    """Tensors in the shapes of params -> (K, rows, columns): their blocks of rows.

    A parameter with an attribute row_block is several matrices of so many rows, one below another;
    the others are one block each.
    """
    rows = [getattr(p, "row_block", len(p)) for p in params]
    return torch.cat([t.unflatten(0, (-1, n)) for t, n in zip(tensors, rows)])


def unstack(blocks: torch.Tensor, params: list) -> list[torch.Tensor]:
    """The inverse of stack, as views."""
    whole, first, out = blocks.view(-1, blocks.size(-1)), 0, []
    for p in params:
        out.append(whole[first : first + len(p)])
        first += len(p)
    return out


def wait(pending: tuple) -> torch.Tensor:
    """The tensor that Share.reduce or Share.gather has begun to make, when it is complete."""
    tensor, handle = pending
    if handle is not None:
        handle.wait()
    return tensor
