"""How good a model is: its loss over a split in fixed windows, and bits per byte."""

import math

import numpy as np
import torch

from bonsai.data.dataset import Mixture
from bonsai.data.split import Split
from bonsai.models.contract import counted_arguments, loss_alone
from bonsai.system.errors import UserError
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime


def split_loss(
    model,
    split: Split,
    runtime: Runtime,
    block_size: int,
    batch_size: int,
    windows: int = 0,
    track: Track = iter,
) -> tuple[float, int]:
    """Mean cross-entropy in nats per token, and the number of tokens, over windows of a split.

    windows: how many, spread evenly over the split; 0: all that tile it, the last one shorter. The
    processes share them; all return the same mean. track: wraps the iteration over the batches, as
    many in each process, to show progress or to stop it. Raises UserError where no window has a
    target; Mixture.check comes before, so that an id outside the vocabulary is an error, too.
    """
    device, was_training, alone = runtime.device, model.training, loss_alone(model)
    # then its graph, which has gradients, serves here too; DDP's is another
    compiled_to_train = runtime.compile and was_training and runtime.world_size == 1

    # not inference_mode: there autocast converts the weights anew at every use
    @torch.set_grad_enabled(compiled_to_train)
    def loss_of(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        more = alone | (counted_arguments(model, x, device) if runtime.compile else {})
        with runtime.autocast():
            return model(x.to(device), y.to(device), **more)[1].detach()

    model.eval()
    all_starts = split.eval_starts(block_size, windows)
    starts = all_starts[runtime.rank :: runtime.world_size]
    most = len(all_starts[:: runtime.world_size])  # of one process: all take as many batches
    total = torch.zeros(2, dtype=torch.float64, device=runtime.float64_device)
    finished = False  # track may stop early: then this is the mean over what was seen
    for i in track(range(0, most, batch_size)):
        finished = i + batch_size >= most
        if i >= len(starts):
            continue
        x, y = split.windows(starts[i : i + batch_size], block_size)

        if runtime.compile:  # one shape, one layout of memory: no second compilation
            rows = batch_size if i > 0 or compiled_to_train else len(x)
            fill = ((0, rows - len(x)), (0, 0))
            x, y = np.pad(x, fill), np.pad(y, fill, constant_values=-1)
        count = int((y >= 0).sum())
        if not count:
            continue
        total[0] += loss_of(x, y).to(total.device).double() * count
        total[1] += count
    model.train(was_training)
    loss, count = runtime.sum(total).tolist()
    if not count and finished:
        raise UserError(
            f"the evaluated windows of {split.files[0]} hold no target, its mask leaves all out: "
            "take more of them (--eval_iters, --windows) or prepare the data again"
        )
    return loss / max(count, 1), int(count)


def mixture_loss(model, data: Mixture, name: str, *args, **kwargs) -> float:
    """split_loss of each data set's split, averaged by weight."""
    return sum(p.weight * split_loss(model, p.split(name), *args, **kwargs)[0] for p in data.parts)


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Nats per token -> bits per byte of text, comparable across tokenizers; None if unknown."""
    return loss / math.log(2) / bytes_per_token if bytes_per_token else None
