"""Checkpoints of llm.c: 256 numbers, then the parameters of a GPT-2, one kind after the other.

The numbers are magic and version, then the sizes: positions, vocabulary, layers, heads, channels,
and the vocabulary rounded up. Parameters are fp32 (version 3) or bf16 (version 5). Parameters that
every layer has are one tensor for all layers. A vocabulary that was rounded up stays so; its last
rows belong to no token.
"""

import struct
from pathlib import Path

import torch

from bonsai.files.access import opened
from bonsai.system.errors import UserError

MAGIC, HEADER = 20240326, 256 * 4
VERSIONS = {3: torch.float32, 5: torch.bfloat16}
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "padded")

# Parameters in their order: name, and shape in channels C (3, 4: so many times C), positions T and
# rows V of the vocabulary.
ALONE = (("transformer.wte.weight", "VC"), ("transformer.wpe.weight", "TC"))
OF_LAYERS = (
    ("ln_1.weight", "C"),
    ("ln_1.bias", "C"),
    ("attn.c_attn.weight", "3C"),
    ("attn.c_attn.bias", "3"),
    ("attn.c_proj.weight", "CC"),
    ("attn.c_proj.bias", "C"),
    ("ln_2.weight", "C"),
    ("ln_2.bias", "C"),
    ("mlp.c_fc.weight", "4C"),
    ("mlp.c_fc.bias", "4"),
    ("mlp.c_proj.weight", "C4"),
    ("mlp.c_proj.bias", "C"),
)
LAST = (("transformer.ln_f.weight", "C"), ("transformer.ln_f.bias", "C"))


def is_llmc(path: Path) -> bool:
    """Whether a file begins as llm.c's checkpoints do."""
    with opened(path) as f:
        return f.read(4) == struct.pack("<i", MAGIC)


def read_llmc(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings of GPTConfig, and the weights by the names of GPT.state_dict(), in float32.

    Raises UserError for another version and for a file that is not as long as its header says.
    """
    with opened(path) as f:
        size = f.seek(0, 2)
        f.seek(0)
        head = f.read(HEADER)
        if len(head) < HEADER:
            raise UserError(f"{path} is damaged: it has {size} bytes, less than its header")
        _, version, *sizes = struct.unpack(f"<{2 + len(SIZES)}i", head[: 4 * (2 + len(SIZES))])
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise UserError(f"{path} is of version {version} of llm.c's checkpoints, not {known}")
        settings = dict(zip(SIZES, sizes))
        rows, dtype = settings.pop("padded"), VERSIONS[version]
        if min(sizes) < 1 or rows < settings["vocab_size"]:
            raise UserError(f"{path} is damaged: its header says {dict(zip(SIZES, sizes))}")
        length = {"C": settings["n_embd"], "T": settings["block_size"], "V": rows}
        length |= {"3": 3 * length["C"], "4": 4 * length["C"]}
        layers, parts = settings["n_layer"], []
        for group, prefix in ((ALONE, ()), (OF_LAYERS, (layers,)), (LAST, ())):
            parts += [(name, (*prefix, *(length[s] for s in shape))) for name, shape in group]
        count = sum(torch.Size(shape).numel() for _, shape in parts)
        if size != HEADER + count * dtype.itemsize:
            wanted = HEADER + count * dtype.itemsize
            raise UserError(f"{path} is damaged: it has {size} bytes, its header says {wanted}")
        weights = {}
        for name, shape in parts:
            data = bytearray(f.read(torch.Size(shape).numel() * dtype.itemsize))
            tensor = torch.frombuffer(data, dtype=dtype).view(shape).float()
            if name.startswith("transformer."):
                weights[name] = tensor
            else:
                weights |= {f"transformer.h.{i}.{name}": tensor[i] for i in range(layers)}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    settings |= {"vocab_size": rows, "bias": True, "dropout": 0.0, "activation": "gelu_tanh"}
    return settings, weights
