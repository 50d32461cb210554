"""One step of training: forward and backward of its micro-batches, clipping, the update."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from inspect import signature

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from bonsai.models.contract import counted_arguments, loss_alone
from bonsai.models.embedding import accumulate_in_place
from bonsai.models.kernels import to_device
from bonsai.system.allocator import keep_freed_memory
from bonsai.system.errors import end_if_told
from bonsai.system.runtime import Runtime, seed_everything
from bonsai.training.optimizers import build_optimizer, clip_gradients, guards_itself

# DDP's option to send buffers around at each step, under the name that newer releases have
RENAMED = "forward_sync_buffers" in signature(DDP).parameters
SYNC_BUFFERS = "forward_sync_buffers" if RENAMED else "broadcast_buffers"


class TrainingStep:
    """A model with its optimizer; train.py's loop, bench.py, benchmarks and projects share it.

        step.begin(number, len(micro_batches))
        for x, y in micro_batches:
            step.backward(x, y, divisor=len(micro_batches))
        step.update()

    or all of that as `step(number, micro_batches, divisors)`. Afterwards there are, as tensors
    without dimensions on the device: `loss`, `norm` (of the gradient, before clipping) and
    `skipped` (how many steps in a row, up to this one, had no finite gradient). Only is_finite, and
    the update of an optimizer without fused kernels, wait for the device.
    """

    def __init__(self, model: torch.nn.Module, c, runtime: Runtime, accumulates: bool = False):
        """model: is moved to the device. c: train.py's settings, or a StepSettings. accumulates:
        whether steps have several micro-batches; for these a compiled model on a GPU sums the
        gradients of embedding tables in a faster way (bonsai/models/embedding.py)."""
        if runtime.device.type == "cpu":
            keep_freed_memory()
        self.model = model = to_device(model, runtime.device)
        self.loss_alone = loss_alone(model)
        self.runtime = runtime
        self.seed, self.grad_clip = c.seed, c.grad_clip
        device = runtime.device
        self.optimizer = build_optimizer(model, c, runtime)
        self.scaler = torch.amp.GradScaler(device.type, enabled=runtime.dtype == "float16")
        self.averages = runtime.world_size > 1 and not self.optimizer_is_sharded
        # Not with DDP, which waits for gradients that autograd makes, and not uncompiled, where
        # autograd adds up gradients in a fixed order
        in_place = accumulates and device.type == "cuda" and runtime.compile and not self.averages
        self.tables = accumulate_in_place(model) if in_place else []  # sum their gradients in place
        self.compiled = torch.compile(model) if runtime.compile else model
        self.network = self.compiled  # what the batches go through
        if self.averages:
            ids = [device.index] if device.type == "cuda" else None
            # the model's buffers are the same constant tables everywhere: no need to send them
            self.network = DDP(self.compiled, device_ids=ids, **{SYNC_BUFFERS: False})
        self.network.train()
        self.micro_batches_left = 0  # of the current step
        self.updating = False  # an update is under way: only some weights are new
        self.row: torch.Tensor | None = None  # (1, T), a row of the last micro-batch
        self.loss = torch.zeros((), device=device)  # this process's; their mean is the step's loss
        self.norm, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)

    @property
    def optimizer_is_sharded(self) -> bool:
        """Whether the optimizer averages gradients over the processes itself, and each process
        keeps a share of its state."""
        return getattr(self.optimizer, "sharded", False)

    def begin(self, number: int, micro_batches: int = 1) -> None:
        """Get ready for step `number`. Its dropout depends only on the seed, number and rank."""
        end_if_told()
        seed_everything(self.seed, number, self.runtime.rank)
        self.micro_batches_left = micro_batches
        self.loss.zero_()
        for table in self.tables:
            table.begin()

    def backward(self, *batch: torch.Tensor, divisor: float = 1) -> None:
        """Forward and backward of one micro-batch: adds to the gradients and to `loss`.

        batch: what the model takes, x and y (B, T) int64. divisor: what the micro-batch's mean loss
        is divided by, as Batches.divisors says: the number of this process's micro-batches in the
        step, unless targets are masked.
        """
        self.micro_batches_left -= 1
        if self.averages:  # DDP averages over the processes once, after the last micro-batch
            self.network.require_backward_grad_sync = self.micro_batches_left == 0
        more, device = self.loss_alone, self.runtime.device
        if self.runtime.compile:
            more = more | counted_arguments(self.model, batch[0], device)
        batch = [part.to(device, non_blocking=True) for part in batch]
        self.row = batch[0][:1]
        with self.runtime.autocast():
            _, loss = self.network(*batch, **more)
        loss = loss / divisor
        self.loss += loss.detach()
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        """Clip the gradients and step the optimizer. If a gradient is not finite, nothing changes.

        The optimizer itself decides that on the device if it can, without a wait for the norm.
        """
        self.scaler.unscale_(self.optimizer)
        self.norm = clip_gradients(self.optimizer, self.grad_clip)
        bad = (~torch.isfinite(self.norm)).float()
        self.skipped = (self.skipped + bad) * bad
        scales, guarded = self.scaler.is_enabled(), guards_itself(self.optimizer)
        if guarded and not scales:
            self.optimizer.found_inf = bad  # if this is 1, its kernels leave everything as it is
        self.updating = True
        if scales or guarded or not bad:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updating = False

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether the step's loss is finite, and so is a loss of the weights after the step, which
        the update may have spoilt. If there is too little memory for the second, the first decides.
        Waits for the device."""
        loss = self.loss
        if self.row is not None:
            self.model.eval()  # a batch norm, for example, would count this row as trained on
            with self.runtime.autocast(), suppress(torch.OutOfMemoryError):
                # any targets will do: here each token is its own
                loss = loss + self.model(self.row, self.row, **self.loss_alone)[1]
            self.model.train()
        return bool(torch.isfinite(loss))

    def __call__(
        self, number: int, micro_batches: Iterable, divisors: Sequence[float] = (1,)
    ) -> torch.Tensor:
        """A whole step with as many micro-batches as there are divisors; returns `loss`."""
        self.begin(number, len(divisors))
        for divisor, batch in zip(divisors, micro_batches):  # divisors first: no batch too many
            self.backward(*batch, divisor=divisor)
        self.update()
        return self.loss
