"""How much memory a training step will need, and what to say if there is too little."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from bonsai.models.head_loss import most_logits
from bonsai.models.loss_kernel import HALF, has_kernel
from bonsai.system.devices import DTYPES
from bonsai.system.errors import NO_THREADS, UserError, short_of_memory, short_of_threads
from bonsai.system.host_memory import available_bytes
from bonsai.system.runtime import Runtime

GIB = 2**30


def training_bytes(
    model: torch.nn.Module,
    batch_size: int,
    T: int,
    dtype: str,
    device_type="cuda",
    compiled=True,
) -> tuple[int, int]:
    """Estimated bytes of (weights, gradients and AdamW's moments; activations of a micro-batch).

    Activations are what autograd keeps; attention keeps no T x T matrix. Per token and layer they
    are about 10 tensors as wide as the residual stream and 2 as wide as the MLP. Compiled for a GPU
    they are 18 numbers in `dtype` per channel, of which 4 are the stream after attention and after
    the MLP in float32 (in bfloat16 these are 2: calculated, not measured). In addition there are
    the logits that exist at one time, with their softmax in float32; compiled for a GPU, with their
    gradient; if a kernel computes the loss, their gradient overwrites them.
    model.channels_per_token() is the width of all layers together.
    """
    c = model.config
    state = 16 * sum(p.numel() for p in model.parameters())
    width = DTYPES[dtype].itemsize
    channels = model.channels_per_token()  # of all layers
    fused = compiled and device_type == "cuda"
    half_stream = getattr(c, "bfloat16_stream", False) and dtype == "bfloat16"
    per_channel = 8 * 4 + (4 + 2 * 4) * width
    if fused:
        per_channel = (16 if half_stream else 18) * width
    layers = channels * per_channel
    if getattr(c, "activation_checkpointing", False):
        layers = channels * ((2 if half_stream else 4) + 2 * per_channel / c.n_layer)
    kernel = has_kernel(torch.device(device_type)) and DTYPES[dtype] in HALF
    logits = min(batch_size * T * c.vocab_size, most_logits(device_type, compiled or kernel))
    if kernel:
        logits *= width
    else:
        logits *= 2 * width if fused else width + 3 * 4
    return state, int(batch_size * T * layers + logits)


def free_bytes(runtime: Runtime) -> int | None:
    """Memory that is free on the device now; None if that is not known."""
    if runtime.device.type == "cuda":
        return torch.cuda.mem_get_info(runtime.device)[0]
    free = available_bytes()
    if free is None:
        with suppress(ValueError, OSError, AttributeError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free


def describe_memory(model, batch_size: int, T: int, runtime: Runtime) -> str:
    """One line: what the run will need per process, what is free, and a warning if that is less."""
    state, activations = training_bytes(
        model, batch_size, T, runtime.dtype, runtime.device.type, runtime.compile
    )
    need, free = state + activations, free_bytes(runtime)
    line = f"memory: about {need / GIB:.2f} GiB needed (weights and optimizer {state / GIB:.2f}, "
    line += f"activations {activations / GIB:.2f})"
    if free is None:
        return line
    line += f", {free / GIB:.1f} GiB free"
    return line + (f"; this may not fit: {LOWER}" if need > free else "")


LOWER = (
    "lower batch_size (and raise gradient_accumulation_steps as much), lower block_size, or set "
    "--activation_checkpointing=True"
)


def out_of_memory(e: BaseException) -> bool:
    """Whether an exception means that an allocation of memory failed."""
    return isinstance(e, torch.OutOfMemoryError) or short_of_memory(e)


@contextmanager
def memory_errors(line: Callable[[], str]) -> Iterator[None]:
    """A context in which running out of memory ends in one line for the user.

    line: returns the rest of that line, such as which batches were too large.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        if short_of_threads(e):
            raise UserError(NO_THREADS) from None
        raise UserError(f"out of memory{line()}") from None
