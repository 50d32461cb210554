"""Models of GPT-2's and Llama's shapes as GGUF files, llama.cpp's format. Writing needs the package
`gguf`, reading does not.

The tensors are those of transformers' classes (architectures.py) under other names. In Llama's
queries and keys the two channels of a rotated pair stand side by side there; here they are half a
head apart. llama.cpp computes GPT-2's GELU by tanh, whatever the model was trained with.
"""

import errno
import re
from functools import partial
from pathlib import Path

import torch

from bonsai.files.access import writing
from bonsai.files.atomic import put_if_free, whole_file
from bonsai.files.gguf import BLOCK, read_gguf_file
from bonsai.models.architectures import CONV1D, Weights, exported, in_dtype
from bonsai.models.hugging_face import assembled
from bonsai.runs.schema import is_whole
from bonsai.system.errors import UserError
from bonsai.system.libraries import installed
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.bpe import BPETokenizer, merge
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.hugging_face import bpe_state
from bonsai.tokenizers.jinja import jinja, read_jinja
from bonsai.tokenizers.patterns import DIGITS, GPT2, GPT4
from bonsai.tokenizers.tokenizer_json import as_bpe, bpe_json
from model import GPTConfig

# transformers' modules, without what stands before them: GGUF's names
OF_GPT2 = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output",
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
OF_LLAMA = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
NAMES = OF_GPT2 | OF_LLAMA
# llama.cpp's names of the patterns by which it cuts a text
PRE = {GPT2: "gpt-2", GPT4: "llama-bpe", DIGITS: "smollm"}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # kinds of tokens
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}


def tensors(config: GPTConfig, weights: Weights, source: str) -> tuple[dict, Weights]:
    """transformers' config.json, and the weights by GGUF's names, matrices in nn.Linear's layout.

    weights: GPT.state_dict(). Raises UserError for a model that llama.cpp cannot compute.
    """
    settings, weights = exported(config, weights, source)
    kind = settings["model_type"]
    gelu = config.activation in ("gelu", "gelu_tanh")
    odd = {
        "gpt2": not gelu and f"activation={config.activation}",
        "llama": config.bias and "bias=True",
        "nanochat": f"qk_norm={config.qk_norm}",
    }[kind]
    if odd:
        raise UserError(
            f"{source} is no model of llama.cpp's, which has no place for {odd} in GPT-2's and "
            "Llama's shapes; --to=safetensors takes every model"
        )
    if kind == "gpt2" and not settings["scale_attn_weights"]:
        factor = config.head_dim**0.5  # which llama.cpp divides by
        for name, w in weights.items():
            if ".c_attn." in name:
                w[..., : config.n_embd] *= factor
    found = {}
    for name, w in weights.items():
        module, _, part = name.rpartition(".")
        layer = re.match(r"(?:transformer\.h|model\.layers)\.(\d+)\.", module)
        short = module[layer.end() :] if layer else module.rpartition(".")[2]
        before = f"blk.{layer[1]}." if layer else ""
        heads = {"self_attn.q_proj": config.n_head, "self_attn.k_proj": config.kv_heads}.get(short)
        if heads:
            halves = w.view(heads, 2, config.head_dim // 2, -1)
            w = halves.transpose(1, 2).reshape(w.shape)
        if kind == "gpt2" and name.endswith(CONV1D):
            w = w.t()
        found[f"{before}{NAMES[short]}.{part}"] = w.float()
    return settings, found


def write_gguf(
    path: Path,
    config: GPTConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
    dtype: str,
    source: str,
) -> None:
    """Write a model, whole or not at all, and never over another file. dtype: of the matrices, a
    key of TYPES; positions, and all that is no matrix, stay in float32. Raises UserError for what
    has no place in the format."""
    settings, found = tensors(config, weights, source)
    words = vocabulary(tokenizer, config.vocab_size)
    gguf = library()
    kind = gguf.GGMLQuantizationType[TYPES[dtype]]
    file_type = {"F32": "ALL_F32"}.get(kind.name, f"MOSTLY_{kind.name}")
    with writing(path, " by --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, place=put_if_free) as f:
            file = gguf.GGUFWriter(f.name, settings["model_type"])
            try:
                file.add_file_type(gguf.LlamaFileType[file_type])
                describe(file, config, settings)
                describe_tokens(file, words, tokenizer.eot)
                if chat is not None:
                    file.add_chat_template(jinja(chat))
                    if (end := chat.end_token(tokenizer)) is not None:
                        file.add_eot_token_id(end)  # of a turn; llama.cpp stops there, too
                for name, w in found.items():
                    add_tensor(gguf, file, name, w, kind)
                file.write_header_to_file()
                file.write_kv_data_to_file()
                file.write_tensors_to_file()
            except OSError as e:
                if e.errno is not None:
                    raise
                raise OSError(errno.ENOSPC, f"{e}") from None  # NumPy's, which has no errno
            finally:
                file.close()


# ---- in ----

SIZES = {  # by architecture: a name in transformers' config.json -> GGUF's after the architecture
    "gpt2": {
        "n_positions": "context_length",
        "n_embd": "embedding_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_inner": "feed_forward_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    "llama": {
        "max_position_embeddings": "context_length",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
        "head_dim": "attention.key_length",
    },
}

# Other entries of a file by which llama.cpp may change the logits -> values with which it does not.
CHANGES = {
    **dict.fromkeys(("rope.scaling.type", "expert_count"), (0, "none")),
    **dict.fromkeys(("rope.scaling.factor", "rope.scale_linear"), (0, 1)),
    **dict.fromkeys(("attention.scale", "attention.sliding_window", "attention.clamp_kqv"), (0,)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale"), (0, 1)),
    "attention.causal": (True,),
}


def read_gguf(path: Path) -> tuple[dict, Weights, dict]:
    """Settings of GPTConfig, the weights by the names of GPT.state_dict() in float32, and all
    entries of the file. Raises UserError for other architectures, and as `read_model` does."""
    values, found = read_gguf_file(path)
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in SIZES:
        raise UserError(f"{path} holds a {kind!r:.40} model, not a gpt2 or llama")
    config = {k: values[f"{kind}.{v}"] for k, v in SIZES[kind].items() if f"{kind}.{v}" in values}
    if kind == "llama" and config.get("rms_norm_eps") is None:  # transformers has a default
        raise UserError(f"{path} has no llama.{SIZES[kind]['rms_norm_eps']}")
    for name in ("rms_norm_eps", "layer_norm_epsilon"):  # in float32 there
        if isinstance(config.get(name), float):
            config[name] = float(f"{config[name]:.6g}")
    for name, without in CHANGES.items():
        if values.get(f"{kind}.{name}") not in (None, *without):
            raise UserError(f"{path}: {name} of its values is not supported")
    rows = found.get("token_embd.weight", torch.empty(0, 0)).shape[:1]
    config |= {"model_type": kind, "vocab_size": rows[0] if rows else None}
    config["tie_word_embeddings"] = "output.weight" not in found
    settings, weights = assembled(config, path, partial(by_their_names, found, config, path))
    head = GPTConfig(**settings).head_dim
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if values.get(f"{kind}.{name}", head) != head:
            raise UserError(f"{path}: {name} of its values is not its head size, {head}")
    return settings, weights, values


def by_their_names(found: Weights, config: dict, path: Path) -> Weights:
    """The tensors of a file, by the names of transformers' classes."""
    llama = config["model_type"] == "llama"
    known = {n: module for module, n in (OF_LLAMA if llama else OF_GPT2).items()}
    weights = {}
    for name, w in found.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", name)
        short, part = layer.groups()[1:] if layer else name.rpartition(".")[::2]
        if short not in known:
            raise UserError(f"{path}: the tensor {name[:80]!r} has no place in it")
        module = known[short]
        if llama and short in ("attn_q", "attn_k"):
            w = apart(w, config, short, f"{path}: {name}")
        if not llama and f"{module}.{part}".endswith(CONV1D) and w.dim() == 2:
            w = w.t()
        before = ("model.layers" if llama else "h") + f".{layer[1]}." if layer else ""
        if llama and not layer and short != "output":
            before = "model."
        weights[f"{before}{module}.{part}"] = w
    return weights


def apart(w: torch.Tensor, config: dict, short: str, name: str) -> torch.Tensor:
    """Queries or keys, reordered: the channels of a pair move from side by side to half a head
    apart."""
    heads = config.get("num_attention_heads")
    if short == "attn_k":
        heads = config.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or heads < 1 or w.dim() != 2 or len(w) % (2 * heads):
        raise UserError(f"{name} of shape {tuple(w.shape)} is not {heads} heads")
    pairs = w.view(heads, len(w) // heads // 2, 2, w.size(1))
    return pairs.transpose(1, 2).reshape(w.shape)


def read_vocabulary(values: dict, vocab_size: int, name: str) -> dict:
    """Tokenizer.to_dict() of the tokenizer in a file. Raises UserError for one that is not byte-
    level BPE with one of the patterns in PRE."""
    kind, pre, tokens, kinds, merges = (
        values.get(f"tokenizer.ggml.{key}")
        for key in ("model", "pre", "tokens", "token_type", "merges")
    )
    if kind is None:
        raise UserError(f"{name} has no tokenizer")
    pattern = next((ours for ours, theirs in PRE.items() if theirs == pre), None)
    if kind != "gpt2" or pattern is None:
        raise UserError(f"{name}: its tokenizer ({kind!r:.30}, {pre!r:.30}) is not supported")
    if values.get("tokenizer.ggml.add_bos_token", pre == PRE[GPT4]):  # llama.cpp's default
        raise UserError(f"{name}: its tokenizer is not supported: it adds a token to each text")
    lists = (tokens, kinds, merges)
    if not all(isinstance(part, list) for part in lists) or len(tokens) != len(kinds):
        raise UserError(f"{name}: its tokens have no kinds, or no merges")
    if not all(isinstance(token, str) for token in tokens + merges):
        raise UserError(f"{name}: its tokens are no texts")
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] == NORMAL}
    added = {token: i for i, token in enumerate(tokens) if kinds[i] == CONTROL}
    pairs = [pair for pair in (m.split(" ") for m in merges) if not added.keys() & {*pair}]
    eos = values.get("tokenizer.ggml.eos_token_id")
    eos = tokens[eos] if type(eos) is int and 0 <= eos < len(tokens) else None
    whole = pattern == GPT4  # so llama.cpp has it
    return bpe_state(vocab | added, pairs, added, pattern, eos, vocab_size, name, whole)


def read_template(values: dict) -> ChatTemplate | None:
    """How the model in a file chats; None where nothing says. Raises UserError for a template that
    `read_jinja` does not read."""
    source, tokens = (values.get(f"tokenizer.{key}") for key in ("chat_template", "ggml.tokens"))
    if not isinstance(source, str) or not isinstance(tokens, list):
        return None
    ids = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {f"{n}_token": tokens[i] for n, i in ids.items() if is_whole(i, 0, len(tokens) - 1)}
    return read_jinja(source, named)


def stops_of(values: dict, vocab_size: int) -> tuple[int, ...]:
    """The tokens at which llama.cpp stops with this file."""
    ids = (values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(i for i in ids if is_whole(i, 0, vocab_size - 1))


# ---- out, part by part ----


def describe(file, config: GPTConfig, settings: dict) -> None:
    """Add the sizes of a model to the file."""
    file.add_vocab_size(config.vocab_size)
    file.add_context_length(config.block_size)
    file.add_embedding_length(config.n_embd)
    file.add_feed_forward_length(4 * config.n_embd)
    file.add_block_count(config.n_layer)
    file.add_head_count(config.n_head)
    if settings["model_type"] == "gpt2":
        file.add_layer_norm_eps(1e-5)
        return
    file.add_head_count_kv(config.kv_heads)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(config.rope_base)
    for add in (file.add_rope_dimension_count, file.add_key_length, file.add_value_length):
        add(config.head_dim)


def add_tensor(gguf, file, name: str, w: torch.Tensor, kind) -> None:
    """Add a tensor to the file in `kind`; but in float16 if its rows are no whole number of blocks,
    and in float32 if it is no matrix, or a table of positions."""
    types = gguf.GGMLQuantizationType
    if w.dim() < 2 or name.startswith("position"):
        kind = types.F32
    elif kind == types.Q8_0 and w.size(-1) % BLOCK:
        kind = types.F16
    if kind in (types.F16, types.Q8_0):  # a block's scale, its largest / 127, is float16, too
        in_dtype(w / 127 if kind == types.Q8_0 else w, "float16", name)
    array = w.contiguous().numpy()
    file.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def vocabulary(tokenizer: Tokenizer, size: int) -> tuple[str, list[str], list[int], list[str]]:
    """llama.cpp's name for the pattern, each token and its kind, and the merges. UserError for a
    tokenizer that llama.cpp would read differently."""
    kind = tokenizer.to_dict()["type"]
    if kind in ("char", "sentencepiece", "table"):
        raise UserError(f"a {kind} tokenizer has no place in a GGUF file here: only BPE and byte")
    if tokenizer.eot is None:
        raise UserError("llama.cpp takes id 11 for the end of a text where a vocabulary has none")
    bpe = as_bpe(tokenizer)
    state = bpe_json(bpe)
    merges = state["model"]["merges"]
    pre = PRE.get(bpe.pattern if merges else GPT2)  # bytes alone are the same however they are cut
    if pre is None:
        raise UserError(
            "llama.cpp cuts no text as this tokenizer's pattern does: gpt2, gpt4 or digits"
        )
    if pre != PRE[GPT4] and (token := unreached(bpe)) is not None:
        raise UserError(
            f"merges do not lead to the token {token!r:.40}, which llama.cpp therefore never uses "
            "with this pattern"
        )
    tokens, kinds = [f"[UNUSED{i}]" for i in range(size)], [UNUSED] * size
    special = {token["content"]: token["id"] for token in state["added_tokens"]}
    for token, i in (state["model"]["vocab"] | special).items():
        tokens[i], kinds[i] = token, CONTROL if token in special else NORMAL
    return pre, tokens, kinds, merges


def unreached(tokenizer: BPETokenizer) -> bytes | None:
    """A token into which its own bytes are not merged; None if there is none."""
    tokens = filter(None, tokenizer.tokens)
    return next((t for t in tokens if merge(t, tokenizer.ranks) != [t]), None)


def describe_tokens(file, words: tuple[str, list[str], list[int], list[str]], eot: int) -> None:
    """Add what `vocabulary` returns to the file; eot: the id of the end of a text."""
    pre, tokens, kinds, merges = words
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    # llama.cpp needs some merges; these two tokens never stand side by side in bytes to be merged
    file.add_token_merges(merges or [f"{tokens[eot]} {tokens[eot]}"])
    file.add_bos_token_id(eot)
    file.add_eos_token_id(eot)
    file.add_add_bos_token(False)  # no text begins with it unless that is written


def library():
    """The package gguf; UserError where it is not installed."""
    if not installed("gguf"):
        raise UserError("writing GGUF needs a library: pip install gguf")
    import gguf

    return gguf
