"""What a model would cost, from its shape alone: parameters, FLOPs, memory, tokens, time.

The model is built on torch's meta device, where tensors have shapes but no memory. So a laptop
counts 175B parameters in a second, and the count is right for any choice of fields.
"""

import dataclasses

import torch

from bonsai.models.table import build_model
from bonsai.planning.memory import GIB, training_bytes
from bonsai.planning.scaling import APPROACH_1, CHINCHILLA, fit_power_law
from bonsai.system.devices import peak_flops_by_name
from bonsai.system.errors import UserError
from bonsai.system.tables import table

PARTS = {  # name of a module -> what to call it
    "wte": "token embedding",
    "wpe": "position embedding",
    "attn": "attention",
    "mlp": "MLP",
    "lm_head": "output head",
    "values": "value embeddings",
    "bigrams": "bigram embeddings",
}


def meta_model(name: str, settings: dict) -> torch.nn.Module:
    """A model without memory, whose parameters have only shapes. UserError as build_model."""
    with torch.device("meta"):
        return build_model(name, settings)


def parameters_by_part(model: torch.nn.Module) -> dict[str, int]:
    """How many parameters each kind of part has; all others are 'norms and others'."""
    counts = {}
    for name, p in model.named_parameters():  # a tied tensor once
        kind = next((PARTS[w] for w in name.split(".") if w in PARTS), "norms and others")
        counts[kind] = counts.get(kind, 0) + p.numel()
    return counts


def cache_bytes(model: torch.nn.Module, T: int) -> int:
    """Bytes of the keys and values of one row of T tokens, in bfloat16."""
    c = model.config
    return 2 * c.n_layer * c.kv_heads * c.head_dim * T * 2


def chinchilla_tokens(N: float) -> dict[str, float]:
    """Compute-optimal numbers of tokens for N parameters (Hoffmann et al. 2022), in three ways."""
    sizes, _, tokens = zip(*APPROACH_1)
    k, p = fit_power_law(sizes, tokens)
    return {
        "20 per parameter": 20 * N,
        "their approach 1": k * N**p,
        "their L(N, D)": CHINCHILLA.optimal_tokens(N),
    }


def describe_time(seconds: float) -> str:
    """
    >>> describe_time(9), describe_time(90), describe_time(3 * 86400)
    ('9 s', '1.5 minutes', '3.0 days')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds / 60:,.1f} minutes"


def describe_size(
    model: torch.nn.Module,
    batch_size: int,
    gpu: str = "",
    gpus: int = 1,
    mfu: float = 0.4,
    tokens: float = 0,
) -> str:
    """A page about a model on any device, also meta: what it consists of and what it needs.

    batch_size: rows of a micro-batch. gpu: a name from runtime.PEAK_TFLOPS; '': say no time. mfu:
    the share of the device's peak that is reached. tokens: to train on; 0: 20 per parameter. Raises
    UserError for a GPU that is not known.
    """
    T = model.config.block_size
    total = model.num_params(non_embedding=False)
    multiplied = model.num_params()
    parts = parameters_by_part(model)
    rows = [{"part": k, "n": n, "share": n / total} for k, n in parts.items()]
    rows.append({"part": "all", "n": total, "share": 1.0})
    columns = [("part", "part", ""), ("parameters", "n", ",d"), ("share", "share", ".1%")]
    flops = model.flops_per_token(T)
    state, activations = training_bytes(model, batch_size, T, "bfloat16")
    cache = cache_bytes(model, T)
    tokens = tokens or 20 * total
    lines = [
        table(rows, columns),
        "",
        f"FLOPs per token     {flops:.3e} to train at a context of {T:,} "
        f"({flops / (6 * multiplied):.2f} of 6 N), {flops / 3:.3e} to read",
        f"memory to train     {(state + activations) / GIB:,.1f} GiB: {state / GIB:,.1f} weights, "
        f"gradients and AdamW in float32, {activations / GIB:,.1f} activations of {batch_size} x "
        f"{T:,} tokens in bfloat16",
        f"checkpoint          {12 * total / GIB:,.2f} GiB: weights and moments",
        f"memory to sample    {2 * total / GIB:,.2f} GiB of weights in bfloat16, and "
        f"{cache / GIB:,.3f} GiB of keys and values per row of {T:,} tokens",
    ]
    dense = dataclasses.replace(model.config, attention_window=0).attention_flops(T)
    if saved := dense - model.config.attention_flops(T):
        lines.append(
            f"local attention     saves {3 * saved:.3e} of the {3 * dense:.3e} FLOPs per token "
            f"that dense layers would take for attention ({saved / dense:.0%})"
        )
    for name, count in chinchilla_tokens(total).items():
        lines.append(f"{'Chinchilla-optimal':19} {count:.2e} tokens, {name}")
    lines.append(
        f"predicted loss      {CHINCHILLA.loss(total, tokens):.3f} nats per token after "
        f"{tokens:.2e} tokens, as their models and data have it"
    )
    if gpu:
        peak = peak_flops_by_name(gpu, "bfloat16")
        if peak is None:
            raise UserError(f"gpu={gpu!r} is not known: name one as in A100, H100 or 4090")
        seconds = tokens * flops / (peak * mfu * gpus)
        many = f"{gpus} x {gpu}" if gpus > 1 else gpu
        lines.append(
            f"time to train       {describe_time(seconds)} on {many} at {mfu:.0%} of "
            f"{peak / 1e12:,.0f} TFLOP/s: {tokens:.2e} tokens, {tokens * flops:.2e} FLOPs"
        )
    return "\n".join(lines)
