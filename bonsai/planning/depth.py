"""A compute-optimal run from one number, its depth: everything else follows by rule.

| what | rule | source |
| --- | --- | --- |
| width | 64 channels per layer | nanochat, 2025 |
| heads | of 128 channels, of 64 below a width of 512 | Karpathy's and our configs |
| tokens | 20 per parameter of the blocks' matrices | Chinchilla (Hoffmann et al. 2022) |
| batch | 2^19 tokens at 12 layers, then with tokens^0.383 | Power Lines (Bergsma et al. 2025) |
| rates | with the root of the batch; AdamW's also with 1 / sqrt(width) | nanochat, 2025 |
| decay of tables | rows remember the same share of the steps | Wang & Aitchison 2024 |

All other settings, and the rates at 12 layers, are those of the fast recipe: recipe.py.
"""

from bonsai.planning import recipe

WIDTH_PER_LAYER = 64
TOKENS_PER_PARAMETER = 20
REFERENCE_DEPTH, REFERENCE_BATCH = 12, 2**19

RECIPE = {name: value for name, value in vars(recipe).items() if not name.startswith("_")}


def matrix_parameters(depth: int) -> int:
    """Parameters of the blocks' matrices: 4 d^2 of attention and 8 d^2 of the MLP per layer."""
    return 12 * depth * (WIDTH_PER_LAYER * depth) ** 2


def compute_optimal(depth: int, settings: dict, given: set[str], world_size: int = 1) -> dict:
    """The settings for a run of `depth` layers, except those in `given`, to which the rest adapts.

    settings: the run's, of which block_size, batch_size (rows per micro-batch) and those in `given`
    are read.

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
    whole = reference / REFERENCE_BATCH  # steps at 12 layers
    rule = {
        "n_layer": depth,
        "n_embd": width,
        "n_head": max(1, width // (128 if width >= 512 else 64)),
        "gradient_accumulation_steps": accumulation,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "momentum_warmup": min(recipe.momentum_warmup, steps // 10),
        "learning_rate": recipe.learning_rate * scale,
        "embedding_lr": recipe.embedding_lr * adam,
        "table_decay": recipe.table_decay * whole / (adam * max(1, steps)),
        "head_lr": recipe.head_lr * adam,
        "scalar_lr": recipe.scalar_lr * adam,
    }
    return {name: value for name, value in {**RECIPE, **rule}.items() if name not in given}
