"""The classes of transformers that a GPT can be: which fields of GPTConfig each has a place for,
and how weights are translated to its names and back.

Classic models become GPT2LMHeadModel, models with rotary positions, RMSNorm and SwiGLU become
LlamaForCausalLM (Touvron et al. 2023), and those of the fast recipe's shape NanoChatForCausalLM. A
field that no class has is an error that names it; it is never dropped. hugging_face.py beside this
file reads such folders.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace

import torch
from torch.nn import functional as F

from bonsai.system.devices import DTYPES
from bonsai.system.errors import UserError
from model import GPTConfig

# Fields that a class need not have: they matter only in training, or only together with another
# field, which is checked.
FREE = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "init", "zero_init"}
FREE |= {"activation_checkpointing", "bfloat16_stream", "norm_bias", "rope_base", "window_pattern"}
ANY = object()
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2"}
# For each class: field -> the values that it can have there. Other fields must be at their default.
PLACES = {
    "GPT2LMHeadModel": {
        "bias": ANY,  # False: zeros
        "norm_gain": ANY,  # False: ones
        "activation": (*ACTIVATIONS,),
        "attention_scale": ANY,  # folded into the queries
        "tie_head": ANY,
    },
    "LlamaForCausalLM": {
        "norm": ("rmsnorm",),
        "position": ("rope",),
        "activation": ("swiglu",),
        "bias": ANY,
        "norm_gain": ANY,
        "n_kv_head": ANY,
        "head_size": ANY,
        "attention_scale": ANY,
        "tie_head": ANY,
    },
    "NanoChatForCausalLM": {
        "norm": ("rmsnorm",),
        "norm_gain": (False,),
        "norm_embedding": (True,),
        "position": ("rope",),
        "activation": (*ACTIVATIONS,),
        "bias": (False,),
        "qk_norm": (True,),  # which leaves no place to fold another attention_scale into
        "n_kv_head": ANY,
        "head_size": ANY,
        "tie_head": ANY,
        "logit_softcap": ANY,
    },
}
KINDS = ("weight", "bias")
# weights of GPT-2's classes that OpenAI's Conv1D stores as the transpose of nn.Linear's
CONV1D = tuple(f"{m}.weight" for m in ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"))
# parameters of Llama's class whose rows are the hidden channels of an MLP
ROWS = tuple(f"mlp.{name}.{kind}" for name in ("gate_proj", "up_proj") for kind in KINDS)
EPSILON = 1e-5  # what our norms add to the mean square
QK_EPSILON = 2.0**-23  # ... and to that of queries and keys: torch's default, 1.19e-7
# NanoChat adds the same number everywhere, in our exports EPSILON. If queries and keys are eight
# times as long, that has the effect of 1e-5 / 8**2 = 1.56e-7. Other powers of two are further from
# QK_EPSILON, and other numbers would round the weights.
QK_LENGTHS = 8.0
Weights = dict[str, torch.Tensor]


# ---- which class ----


def plain(config: GPTConfig) -> GPTConfig:
    """The same model, with as many fields as possible at their default."""
    same = {}
    if config.n_kv_head == config.n_head:
        same["n_kv_head"] = 0
    if config.head_size * config.n_head == config.n_embd:
        same["head_size"] = 0
    if math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-9):
        same["attention_scale"] = 0.0
    if config.norm_bias == config.bias:
        same["norm_bias"] = "auto"
    if config.attention_window >= config.block_size:
        same["attention_window"] = 0
    return replace(config, **same)


def misfits(config: GPTConfig, places: dict) -> list[str]:
    """The fields, with their values, for which `places` has no place."""
    default, settings = GPTConfig(), asdict(config)
    found = []
    for f in fields(GPTConfig):
        allowed = places.get(f.name, (getattr(default, f.name),))
        if f.name not in FREE and allowed is not ANY and settings[f.name] not in allowed:
            found.append(f"{f.name}={settings[f.name]}")
    if config.head_size and config.n_embd % config.n_head:  # transformers checks it all the same
        found.append(f"n_embd={config.n_embd} with n_head={config.n_head}")
    return found


def class_for(config: GPTConfig, source: str) -> str:
    """The class of transformers for a model. If there is none: UserError that names the class which
    lacks the fewest fields, and these fields."""
    lacking = {name: misfits(config, places) for name, places in PLACES.items()}
    name = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[name]:
        raise UserError(
            f"{source} is no model of transformers or GGUF: the nearest, {name}, has no "
            f"place for {', '.join(lacking[name])}; --to=hf_code takes it, with its code"
        )
    return name


# ---- what is folded into the weights ----


def fold_scale(weights: Weights, config: GPTConfig) -> None:
    """Multiply an attention_scale other than 1 / sqrt(head size) into the queries, to which the
    scores are proportional. Changes `weights` in place."""
    if not config.attention_scale:
        return
    factor, rows = config.attention_scale * math.sqrt(config.head_dim), config.n_head
    for name, w in weights.items():
        if ".c_attn." in name:
            weights[name] = w = w.clone()
            w[: rows * config.head_dim] *= factor


def in_dtype(w: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """Weights in `dtype`, integers and the like as they are; UserError if float16 would make finite
    ones infinite."""
    if not w.is_floating_point():
        return w
    converted = w.to(DTYPES[dtype])
    if dtype == "float16" and w[~converted.isfinite()].isfinite().any():
        raise UserError(
            f"{name} has weights beyond 65504, the largest of float16: --weights_dtype=bfloat16"
        )
    return converted


def fill_in(weights: Weights, config: GPTConfig, biases: bool = False) -> None:
    """Add ones for gains that a model does not have; biases: also zeros for its biases. Changes
    `weights` in place."""
    c, like = config, weights["transformer.wte.weight"]
    rows = {"attn.c_attn": (c.n_head + 2 * c.kv_heads) * c.head_dim, "mlp.c_fc": 4 * c.n_embd}
    names = [f"transformer.h.{i}." for i in range(c.n_layer)]
    norms = [*(f"{n}ln_{k}" for n in names for k in (1, 2)), "transformer.ln_f"]
    for norm in norms:
        weights.setdefault(f"{norm}.weight", like.new_ones(c.n_embd))
    linear = [f"{n}{m}" for n in names for m in (*rows, "attn.c_proj", "mlp.c_proj")]
    for name in (*norms, *linear) if biases else ():
        width = next((n for m, n in rows.items() if name.endswith(m)), c.n_embd)
        weights.setdefault(f"{name}.bias", like.new_zeros(width))


# ---- Llama and NanoChat ----

Parts = list[tuple[str, int]]  # their names, and how many rows of our tensor each of them has


def layout(config: GPTConfig, llama: bool) -> Iterable[tuple[str, Parts]]:
    """For each of our modules, the modules of transformers that hold its rows, in order."""
    c = config
    heads = [("q_proj", c.n_head), ("k_proj", c.kv_heads), ("v_proj", c.kv_heads)]
    yield "transformer.wte", [("model.embed_tokens", c.vocab_size)]
    for i in range(c.n_layer):
        ours, theirs = f"transformer.h.{i}", f"model.layers.{i}"
        attention = [(f"{theirs}.self_attn.{name}", n * c.head_dim) for name, n in heads]
        yield f"{ours}.attn.c_attn", attention
        yield f"{ours}.attn.c_proj", [(f"{theirs}.self_attn.o_proj", c.n_embd)]
        if llama:
            hidden = [(f"{theirs}.mlp.{name}", 4 * c.n_embd) for name in ("gate_proj", "up_proj")]
            yield f"{ours}.mlp.c_fc", hidden
            yield f"{ours}.mlp.c_proj", [(f"{theirs}.mlp.down_proj", c.n_embd)]
            yield f"{ours}.ln_1", [(f"{theirs}.input_layernorm", c.n_embd)]
            yield f"{ours}.ln_2", [(f"{theirs}.post_attention_layernorm", c.n_embd)]
        else:
            yield f"{ours}.mlp.c_fc", [(f"{theirs}.mlp.fc1", 4 * c.n_embd)]
            yield f"{ours}.mlp.c_proj", [(f"{theirs}.mlp.fc2", c.n_embd)]
    if llama:
        yield "transformer.ln_f", [("model.norm", c.n_embd)]
    yield "lm_head", [("lm_head", c.vocab_size)]


def to_rotary(weights: Weights, config: GPTConfig, llama: bool) -> Weights:
    """Our weights by the names of LlamaForCausalLM, or of NanoChatForCausalLM."""
    theirs = {}
    for name, parts in layout(config, llama):
        for kind in KINDS:
            if (w := weights.get(f"{name}.{kind}")) is not None:
                pieces = w.split([n for _, n in parts])
                theirs |= {f"{part}.{kind}": p for (part, _), p in zip(parts, pieces)}
    return theirs if llama else turned(theirs, config, QK_LENGTHS)


def from_rotary(theirs: Weights, config: GPTConfig, llama: bool) -> Weights:
    """The inverse of `to_rotary`. What is missing or unknown stays as it is; check_fit names it."""
    weights = dict(theirs if llama else turned(theirs, config, 1 / QK_LENGTHS))
    for name, parts in layout(config, llama):
        for kind in KINDS:
            names = [f"{part}.{kind}" for part, _ in parts]
            if all(n in weights for n in names):
                pieces = [weights.pop(n) for n in names]
                same = len({(p.shape[1:], p.dim()) for p in pieces}) == 1 and pieces[0].dim()
                if len(pieces) > 1 and same:
                    odd = next((p.dtype for p in pieces if not p.is_floating_point()), None)
                    pieces = [torch.cat([p.to(odd or p.dtype) for p in pieces])]
                weights[f"{name}.{kind}"] = pieces[0]
    return weights


def turned(weights: Weights, config: GPTConfig, factor: float) -> Weights:
    """Weights with queries and keys as NanoChat has them, `factor` times as long.

    NanoChat rotates by -theta; if the second half of each head is negated, it computes the same
    scores, to the last bit. A second call, with 1 / factor, gives the weights back.
    """
    theirs = dict(weights)
    for name, w in weights.items():
        if not name.endswith(("q_proj.weight", "k_proj.weight")) or not w.is_floating_point():
            continue
        if w.dim() and len(w) % config.head_dim == 0:
            heads = len(w) // config.head_dim
            halves = (w * factor).view(heads, 2, config.head_dim // 2, *w.shape[1:])
            halves[:, 1].neg_()
            theirs[name] = halves.view(w.shape)
    return theirs


def widened(theirs: Weights, config: GPTConfig, inner: int, source: object) -> Weights:
    """A Llama whose MLP has `inner` hidden channels, fewer than 4 n_embd, filled up to 4 n_embd
    with zeros, which add nothing. UserError if its weights have another number of channels."""
    missing, wide = 4 * config.n_embd - inner, dict(theirs)
    for name, w in theirs.items():
        rows, columns = name.endswith(ROWS), name.endswith("down_proj.weight")
        if (rows or columns) and w.shape[columns:][:1] != (inner,):
            raise UserError(f"{source}: {name} is {tuple(w.shape)}, but intermediate_size={inner}")
        if rows:
            wide[name] = F.pad(w, (*(0, 0) * (w.dim() - 1), 0, missing))
        elif columns:
            wide[name] = F.pad(w, (0, missing))
    return wide


def with_our_epsilon(weights: Weights, config: GPTConfig, eps: float) -> Weights:
    """Turn a Llama or NanoChat, by our names, whose norms add `eps` into one whose norms add ours.

    The norm of s x that adds s^2 eps equals the norm of x that adds eps. So Llama's residual stream
    is scaled by s: its embedding, and what each block adds. A tied head, which is thereby scaled,
    too, is compensated by the gain before it. NanoChat normalises its embedding, and beside that
    1e-5 does not count; only its queries and keys are scaled, by an s of their own.
    """
    s, scaled = math.sqrt(EPSILON / eps), dict(weights)
    adds = ("transformer.wte.weight", *(f"c_proj.{kind}" for kind in KINDS))
    for name, w in weights.items():
        if name.endswith(adds[:1] if config.norm_embedding else adds):
            scaled[name] = w * s
        elif config.qk_norm and name.endswith("c_attn.weight"):
            scaled[name] = w = w.clone()
            rows = (config.n_head + config.kv_heads) * config.head_dim
            w[:rows] *= math.sqrt(QK_EPSILON / eps) * QK_LENGTHS
    if config.tie_head:
        scaled["lm_head.weight"] = scaled["transformer.wte.weight"]
        scaled["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"] / s
    return scaled


# ---- out: weights and config.json ----


def exported(config: GPTConfig, weights: Weights, source: str) -> tuple[dict, Weights]:
    """config.json and the weights of a model for transformers; shared weights are written once.

    weights: GPT.state_dict(). Raises UserError for a model that no class there can be.
    """
    config, weights = plain(config), dict(weights)
    name = class_for(config, source)
    if config.tie_head:
        del weights["lm_head.weight"]
    if name == "GPT2LMHeadModel":
        settings, weights = exported_gpt2(config, weights)
    else:
        settings, weights = exported_rotary(config, weights, name == "LlamaForCausalLM")
    settings |= {
        "architectures": [name],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_head,
        "use_cache": True,
    }
    return settings, {k: w.contiguous() for k, w in weights.items()}


def exported_gpt2(config: GPTConfig, weights: Weights) -> tuple[dict, Weights]:
    """Fields of config.json, and the weights, for GPT2LMHeadModel."""
    unscaled = config.attention_scale == 1  # GPT-2's class has a field for that
    if not unscaled:
        fold_scale(weights, config)
    fill_in(weights, config, biases=True)
    weights = {k: w.t() if k.endswith(CONV1D) else w for k, w in weights.items()}
    settings = {
        "model_type": "gpt2",
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": EPSILON,
        "scale_attn_weights": not unscaled,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }
    return settings, weights


def exported_rotary(config: GPTConfig, weights: Weights, llama: bool) -> tuple[dict, Weights]:
    """Fields of config.json, and the weights, for LlamaForCausalLM or NanoChatForCausalLM."""
    settings = {
        "model_type": "llama" if llama else "nanochat",
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu" if llama else ACTIVATIONS[config.activation],
        "rms_norm_eps": EPSILON,
        "rope_theta": config.rope_base,  # where others than transformers 5 look for it
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": config.bias,
        "attention_dropout": config.dropout,
    }
    if llama:
        fold_scale(weights, config)
        fill_in(weights, config)
        settings["mlp_bias"] = config.bias
    else:
        settings["final_logit_softcapping"] = config.logit_softcap or None
    return settings, to_rotary(weights, config, llama)
