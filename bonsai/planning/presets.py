"""The GPT family by name: the published shapes as fields of GPTConfig.

    python train.py --preset=gpt2-medium     # 355M parameters: for GPUs
    python bench.py --size=gpt3-13b          # what it would cost; nothing is allocated

Sources: Radford et al. 2018 (GPT-1), Radford et al. 2019 (GPT-2), Brown et al. 2020, table 2.1
(GPT-3), Rae et al. 2021 and Hoffmann et al. 2022, table A9 (Gopher's 44M), minGPT (mini, micro,
nano). Two rows of GPT-3's table are not consistent: XL has 24 heads of 128 channels with d = 2048,
where 16 fit; 13B has d = 5140, but 40 heads of 128 make 5120. The shapes here are consistent.
"""

from dataclasses import dataclass

from bonsai.system.errors import UserError


@dataclass(frozen=True)
class Preset:
    """A published model: its fields, its published number of parameters, and a note."""

    fields: dict
    published: float | None = None
    note: str = ""


def gpt(n_layer: int, n_head: int, n_embd: int, **fields) -> dict:
    """OpenAI's common shape: biases, learned positions, GELU by tanh, a shared embedding."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "bias": True}
    return {**shape, "vocab_size": 50257, "block_size": 1024, "activation": "gelu_tanh", **fields}


def gpt3(n_layer: int, n_head: int, n_embd: int) -> dict:
    """Every other layer sees only a band of positions; the paper does not give its width."""
    bands = {"attention_window": 256, "window_pattern": "DL"}
    return gpt(n_layer, n_head, n_embd, block_size=2048, **bands)


GPT1 = {"vocab_size": 40478, "block_size": 512, "norm_placement": "post"}
GOPHER = {"vocab_size": 32000, "block_size": 2048}
GOPHER_NOTE = "the published count has relative positions, a matrix per layer more"

PRESETS = {
    "openai-gpt": Preset(gpt(12, 12, 768, **GPT1), 117e6, "GPT-1"),
    "gpt2": Preset(gpt(12, 12, 768), 124e6),
    "gpt2-medium": Preset(gpt(24, 16, 1024), 355e6),
    "gpt2-large": Preset(gpt(36, 20, 1280), 774e6),
    "gpt2-xl": Preset(gpt(48, 25, 1600), 1558e6),
    "gopher-44m": Preset(gpt(8, 16, 512, **GOPHER), 44e6, GOPHER_NOTE),
    "gpt-mini": Preset(gpt(6, 6, 192), None, "minGPT's"),
    "gpt-micro": Preset(gpt(4, 4, 128), None, "minGPT's"),
    "gpt-nano": Preset(gpt(3, 3, 48), None, "minGPT's"),
    "gpt3-small": Preset(gpt3(12, 12, 768), 125e6),
    "gpt3-medium": Preset(gpt3(24, 16, 1024), 350e6),
    "gpt3-large": Preset(gpt3(24, 16, 1536), 760e6),
    "gpt3-xl": Preset(gpt3(24, 16, 2048), 1.3e9, "the paper's 24 heads do not fit: 16 of 128"),
    "gpt3-2.7b": Preset(gpt3(32, 32, 2560), 2.7e9),
    "gpt3-6.7b": Preset(gpt3(32, 32, 4096), 6.7e9),
    "gpt3-13b": Preset(gpt3(40, 40, 5120), 13e9, "the paper's width, 5140, is not 40 x 128"),
    "gpt3-175b": Preset(gpt3(96, 96, 12288), 175e9),
}

# for training: the vocabulary is that of the data
FIELDS = {
    name: {k: v for k, v in preset.fields.items() if k != "vocab_size"}
    for name, preset in PRESETS.items()
}


def find_preset(name: str) -> Preset:
    """The preset of that name; for an unknown one UserError, which lists the names."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]
