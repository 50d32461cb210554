"""One dial, the depth, for a compute-optimal run: everything else follows from it by rule.

| what | rule | source |
| --- | --- | --- |
| width | 64 channels per layer | nanochat, 2025 |
| heads | of 128 channels, of 64 below a width of 512 | Karpathy's and our configs |
| tokens | 20 per parameter of the blocks' matrices | Chinchilla (Hoffmann et al. 2022) |
| batch | 2^19 tokens at 12 layers, then with tokens^0.383 | Power Lines (Bergsma et al. 2025) |
| rates | with the root of the batch; AdamW's also with 1 / sqrt(width) | nanochat, 2025 |

The block and its rates at 12 layers are those of config/fast_gpt2.py.
"""

WIDTH_PER_LAYER = 64
TOKENS_PER_PARAMETER = 20
REFERENCE_DEPTH, REFERENCE_BATCH = 12, 2**19

BLOCK = {
    "position": "rope",
    "norm": "rmsnorm",
    "norm_gain": False,
    "norm_embedding": True,
    "qk_norm": True,
    "activation": "relu2",
    "tie_head": False,
    "zero_init": True,
    "init": "fan_in",
    "logit_softcap": 15.0,
    "optimizer": "muon",
    "beta1": 0.8,
    "beta2": 0.95,
    "adam_eps": 1e-10,
    "momentum": 0.95,
    "weight_decay": 0.05,
    "cautious_decay": True,
    "grad_clip": 0.0,
    "batch_order": "epoch",
    "decay_lr": True,
    "lr_schedule": "trapezoid",
    "cooldown": 0.7,
    "warmup_iters": 0,
    "min_lr": 0.0,
}


def matrix_parameters(depth: int) -> int:
    """Parameters of the blocks' matrices: 4 d^2 of attention and 8 d^2 of the MLP per layer."""
    return 12 * depth * (WIDTH_PER_LAYER * depth) ** 2


def compute_optimal(depth: int, settings: dict, given: set[str], world_size: int = 1) -> dict:
    """The settings of a run of `depth` layers; those in `given` are kept, and the rest fits them.

    settings: the run's, of which block_size and batch_size (rows per micro-batch), and whatever is
    given, count.

    >>> run = compute_optimal(12, {"block_size": 1024, "batch_size": 16}, set())
    >>> run["n_embd"], run["n_head"], run["gradient_accumulation_steps"], run["max_iters"]
    (768, 6, 32, 3240)
    """

    def pick(name: str, value):
        return settings[name] if name in given else value

    width = pick("n_embd", WIDTH_PER_LAYER * depth)
    tokens = TOKENS_PER_PARAMETER * matrix_parameters(depth)
    reference = TOKENS_PER_PARAMETER * matrix_parameters(REFERENCE_DEPTH)
    wanted = REFERENCE_BATCH * (tokens / reference) ** 0.383
    micro = settings["batch_size"] * settings["block_size"] * world_size
    accumulation = pick("gradient_accumulation_steps", max(1, round(wanted / micro)) * world_size)
    batch = accumulation * micro // world_size  # tokens per step
    steps = pick("max_iters", max(1, round(tokens / batch)))
    scale = (batch / REFERENCE_BATCH) ** 0.5
    adam = scale * (width / (WIDTH_PER_LAYER * REFERENCE_DEPTH)) ** -0.5
    rule = {
        "n_layer": depth,
        "n_embd": width,
        "n_head": max(1, width // (128 if width >= 512 else 64)),
        "gradient_accumulation_steps": accumulation,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "momentum_warmup": min(300, steps // 10),
        "learning_rate": 0.025 * scale,
        "embedding_lr": 0.7 * adam,
        "head_lr": 0.004 * adam,
        "scalar_lr": 0.015 * adam,
    }
    return {name: value for name, value in {**BLOCK, **rule}.items() if name not in given}
