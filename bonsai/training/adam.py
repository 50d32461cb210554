"""AdamW (Loshchilov & Hutter 2019) with gradient clipping inside: by the kernel of triton_adam.py
if it can be used and agrees with torch, else by torch.

Torch's clipping reads and writes all gradients, and its fused AdamW reads them again, in some 30
launches for 500M parameters, none of which uses all of an H200. For 355M parameters this takes, by
calculation, 3.9 ms of a step of 83 ms; the memory's bandwidth would allow 2.7 ms.
"""

import sys
from inspect import unwrap

import torch

from bonsai.models.loss_kernel import has_kernel
from bonsai.system.errors import one_line
from bonsai.training.eager import AdamW

refused: dict[torch.device, str] = {}  # why the kernel is not used on a device; '': it is used


class KernelAdamW(AdamW):
    """torch's fused AdamW, with the same groups and state, whose step is a kernel of ours.

    Clipping does not change gradients in memory: clip_gradients() computes their norm, and the
    kernel of the next step() scales them as it reads them. A step that the kernel does not support
    (for example if parameters are not float32) is computed by torch.
    """

    clip: tuple[torch.Tensor, float] | None = None  # for the next step: the norm and its maximum
    tables: dict | None = None  # by the number of a group: its Table, see triton_adam.py

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Let the next step scale the gradients down to a norm of max_norm (0: it does not).
        Returns their norm before that."""
        norm = torch.nn.utils.get_total_norm(self.gradients())
        self.clip = (norm, max_norm) if max_norm else None
        return norm

    def gradients(self) -> list[torch.Tensor]:
        params = [p for group in self.param_groups for p in group["params"]]
        return [p.grad for p in params if p.grad is not None]

    @torch.no_grad()
    def step(self, closure=None):
        """One update. As in torch, nothing changes if the tensor found_inf is 1."""
        clip, self.clip = self.clip, None
        groups = self.param_groups
        scaled = getattr(self, "grad_scale", None) is not None  # by a GradScaler
        ours = closure is None and not scaled and all(map(is_plain, groups))
        members = [self.members(group) for group in groups] if ours else []
        if ours and all(map(fits, members)):
            self.tables = self.tables or {}
            for number, group in enumerate(groups):
                if members[number]:
                    self.update(number, group, members[number], clip)
            return None
        if clip:
            norm, max_norm = clip
            params = [p for group in groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
        return unwrap(AdamW.step)(self, closure)  # without hooks: this step calls them already

    def update(self, number: int, group: dict, members: list[tuple], clip: tuple | None) -> None:
        """The kernel's step for one group."""
        from bonsai.training.triton_adam import launch, tabulate

        device = members[0][0].device
        bad = getattr(self, "found_inf", None)
        bad = torch.zeros((), device=device) if bad is None else bad.to(device, torch.float32)
        counts = [count for *_, count in members]
        torch._foreach_add_(counts, [1 - bad] * len(counts))  # for a single tensor torch would wait
        self.tables[number] = tabulate(members, self.tables.get(number))
        launch(self.tables[number], group, bad, clip)

    def members(self, group: dict) -> list[tuple[torch.Tensor, ...]]:
        """For each parameter of a group that has a gradient: weight, gradient, both moments and the
        count of steps; the last three are torch's state."""
        found = []
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            found.append((p, p.grad, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return found


def is_plain(group: dict) -> bool:
    """Whether a group's settings are plain numbers, and none selects another algorithm."""
    numbers = (group["lr"], group["weight_decay"], group["eps"], *group["betas"])
    others = ("amsgrad", "maximize", "differentiable")
    return all(isinstance(x, int | float) for x in numbers) and not any(map(group.get, others))


def fits(members: list[tuple[torch.Tensor, ...]]) -> bool:
    """Whether the kernel can take these tensors. It gets only their addresses and the length of a
    weight, so all must be contiguous, in float32, on the weight's device and of its length; the
    count of steps must be one number."""
    return all(
        t.dtype == torch.float32
        and t.layout == torch.strided
        and t.is_contiguous()
        and t.device == weight.device
        and t.numel() == (1 if t is count else weight.numel())
        for weight, *others, count in members
        for t in (weight, *others, count)
    )


def fastest_adamw(plain: torch.optim.AdamW) -> torch.optim.AdamW:
    """KernelAdamW for the groups of `plain`, if their device supports it; else `plain`. `plain` has
    not made a step yet."""
    devices = {p.device for group in plain.param_groups for p in group["params"]}
    fused = all(group["fused"] for group in plain.param_groups)
    if type(plain) not in (torch.optim.AdamW, AdamW) or not fused or len(devices) != 1:
        return plain
    (device,) = devices
    if not has_kernel(device):
        return plain
    if device not in refused:
        refused[device] = why = refusal(device)
        if why:
            why = f"no AdamW kernel of ours on {device}, torch's is used, slower: {why}"
            print(one_line(why), file=sys.stderr, flush=True)
    if refused[device]:
        return plain
    ours = KernelAdamW(plain.param_groups, fused=True)
    ours.defaults = plain.defaults
    return ours


def refusal(device: torch.device) -> str:
    """Why the kernel cannot be used; '' if it can.

    Random tensors are updated by both optimizers and compared. They come from a generator of their
    own, so that the run's random numbers stay the same.
    """
    noise = torch.Generator(device).manual_seed(0)

    def drawn() -> list[torch.Tensor]:
        return [torch.randn(n, generator=noise, device=device) for n in (3, 5000, 20_000)]

    try:
        weights = drawn()
        optimizers = [
            kind([torch.nn.Parameter(w.clone()) for w in weights], lr=0.01, fused=True)
            for kind in (KernelAdamW, AdamW)
        ]
        for clips, broken in ((True, 0.0), (False, 0.0), (True, 1.0)):
            grads = drawn()
            for each in optimizers:
                params = each.param_groups[0]["params"]
                for p, grad in zip(params, grads):
                    p.grad = grad.clone()
                each.found_inf = torch.full((), broken, device=device)
                if clips:
                    clip = getattr(each, "clip_gradients", None)
                    clip(1.0) if clip else torch.nn.utils.clip_grad_norm_(params, 1.0)
                each.step()
        ours, theirs = (
            torch.cat([p.detach() for p in each.param_groups[0]["params"]]) for each in optimizers
        )
        same = torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    except Exception as e:  # from Triton, from the driver, or because of the device's limits
        return f"{type(e).__name__} {e}"
    return "" if same else "its weights differ from torch's"
