"""AdamW (Loshchilov & Hutter 2019) with the clipping inside: by triton_adam.py, where it can be had
and gives what torch gives, else torch's.

Clipping by torch reads all gradients and writes them, and its fused AdamW reads them again, in some
30 launches for 500M parameters, none of which fills an H200. For 355M that is, by calculation, 3.9
ms of a step of 83, where the memory needs 2.7.
"""

import sys
from inspect import unwrap

import torch

from bonsai.models.loss_kernel import has_kernel
from bonsai.system.errors import one_line
from bonsai.training.eager import AdamW

refused: dict[torch.device, str] = {}  # why the kernel is not used on a device; '': it is


class KernelAdamW(AdamW):
    """torch's fused AdamW, with its groups and its state, whose step is a kernel of ours.

    Gradients that are to be clipped stay as they are until the kernel reads them, and after it:
    clip_gradients() computes their norm, and the next step() multiplies. A step that the kernel
    is not for (parameters that are not float32, say) is torch's.
    """

    clip: tuple[torch.Tensor, float] | None = None  # for the next step: the norm and its maximum
    tables: dict | None = None  # of triton_adam.py, by group

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Have the next step scale the gradients down to a norm of max_norm (0: don't); returns
        the norm before."""
        norm = torch.nn.utils.get_total_norm(self.gradients())
        self.clip = (norm, max_norm) if max_norm else None
        return norm

    def gradients(self) -> list[torch.Tensor]:
        params = [p for group in self.param_groups for p in group["params"]]
        return [p.grad for p in params if p.grad is not None]

    @torch.no_grad()
    def step(self, closure=None):
        """One update. As with torch's, nothing changes where found_inf, a tensor, is 1."""
        clip, self.clip = self.clip, None
        groups = self.param_groups
        scaled = getattr(self, "grad_scale", None) is not None  # by a GradScaler, still
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
        return unwrap(AdamW.step)(self, closure)  # without its hooks: they are called for this one

    def update(self, number: int, group: dict, members: list[tuple], clip: tuple | None) -> None:
        """The kernel's step of one group."""
        from bonsai.training.triton_adam import launch, tabulate

        device = members[0][0].device
        bad = getattr(self, "found_inf", None)
        bad = torch.zeros((), device=device) if bad is None else bad.to(device, torch.float32)
        counts = [count for *_, count in members]
        torch._foreach_add_(counts, [1 - bad] * len(counts))  # one tensor alone is waited for
        self.tables[number] = tabulate(members, self.tables.get(number))
        launch(self.tables[number], group, bad, clip)

    def members(self, group: dict) -> list[tuple[torch.Tensor, ...]]:
        """Weight, gradient, both moments and the count of steps of each parameter of a group that
        has a gradient, the last three as torch keeps them."""
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
    """Whether a group's settings are numbers, and none asks for another algorithm."""
    numbers = (group["lr"], group["weight_decay"], group["eps"], *group["betas"])
    others = ("amsgrad", "maximize", "differentiable")
    return all(isinstance(x, int | float) for x in numbers) and not any(map(group.get, others))


def fits(members: list[tuple[torch.Tensor, ...]]) -> bool:
    """Whether tensors are as the kernel takes them, which knows only where each begins and how long
    a weight is: contiguous, in float32, on the weight's device and as long, or one number."""
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
    """KernelAdamW of the groups of `plain`, which has not made a step, where a device has it; else
    `plain`."""
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
            why = f"no AdamW of ours on {device}, torch's is taken, slower: {why}"
            print(one_line(why), file=sys.stderr, flush=True)
    if refused[device]:
        return plain
    ours = KernelAdamW(plain.param_groups, fused=True)
    ours.defaults = plain.defaults
    return ours


def refusal(device: torch.device) -> str:
    """Why the kernel is not to be used; '': it may be.

    Tensors of noise are updated both ways, from a generator of their own, so that the run's noise
    stays as it is.
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
    except Exception as e:  # of triton, of the driver, of the device's limits
        return f"{type(e).__name__} {e}"
    return "" if same else "weights were not what torch's are"
