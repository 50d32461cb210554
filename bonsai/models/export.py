"""Writes a model for other programs: Hugging Face's folder, llama.cpp's file, nanoGPT's checkpoint.

Each is made beside its goal and then renamed, so that it is there whole or not at all. (One file
with our own names: bonsai/runs/portable.py.)
"""

import io
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bonsai.files.access import writing
from bonsai.files.atomic import replace_text, whole_file, whole_folder
from bonsai.files.safetensors import write_safetensors
from bonsai.models import with_code
from bonsai.models.architectures import Weights, exported, in_dtype, plain
from bonsai.models.edits import difference
from bonsai.models.gguf import write_gguf
from bonsai.models.loading import Loaded
from bonsai.models.table import describe_model
from bonsai.runs.names import CKPT
from bonsai.system.errors import UserError
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.nanogpt import META
from bonsai.tokenizers.tokenizer_json import tokenizer_config, tokenizer_json
from model import CLASSIC_KEYS, GPTConfig

# fields that, whatever their value, change nothing in a classic model
NOT_NEEDED = ("init", "zero_init", "activation_checkpointing", "bfloat16_stream")
NOT_NEEDED += ("window_pattern", "rope_base")


def gpt_of(loaded: Loaded, tokenizer: Tokenizer) -> tuple[GPTConfig, Weights]:
    """Configuration and weights of a GPT without the rows that pad its vocabulary; UserError for
    any other model."""
    if loaded.name != "gpt":
        raise UserError(
            f"{loaded.source} is a {loaded.name}, for which others have no class: "
            "--to=safetensors takes every model"
        )
    if found := difference(loaded.model):
        raise UserError(
            f"{found}: other programs would write other texts with these weights; "
            "--to=hf_code takes them with model.py, --to=safetensors takes every model"
        )
    config = replace(loaded.model.config, vocab_size=tokenizer.vocab_size)
    weights = {k: w.detach() for k, w in loaded.model.state_dict().items()}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = weights[name][: config.vocab_size]
    return config, weights


def export_hugging_face(loaded: Loaded, tokenizer: Tokenizer, folder: Path, dtype: str) -> str:
    """Write a folder that transformers loads without any of our code; returns the name of the
    model's class there. Raises UserError for what has no place in it, and for errors of the disk.
    """
    config, weights = gpt_of(loaded, tokenizer)
    settings, weights = exported(config, weights, loaded.source)
    write_folder(folder, loaded, tokenizer, settings, weights, dtype)
    return settings["architectures"][0]


def export_with_code(
    loaded: Loaded, tokenizer: Tokenizer, folder: Path, dtype: str, use_cache: bool = True
) -> str:
    """Write a folder that transformers loads with the model.py in it, from any GPT; returns the
    name of the model's class there. use_cache: whether texts are written with a cache of keys and
    values. Raises UserError for other models, a model.py that cannot stand alone, and errors of the
    disk."""
    if loaded.name != "gpt":
        raise UserError(
            f"{loaded.source} is a {loaded.name}, whose code is not in model.py alone: "
            "--to=safetensors takes every model"
        )
    settings, weights = with_code.exported(loaded.model)
    settings["use_cache"] = use_cache
    write_folder(folder, loaded, tokenizer, settings, weights, dtype, with_code.code())
    return settings["architectures"][0]


def write_folder(
    folder: Path,
    loaded: Loaded,
    tokenizer: Tokenizer,
    settings: dict,
    weights: Weights,
    dtype: str,
    code: dict[str, bytes] | None = None,
) -> None:
    """Write a folder of Hugging Face's. settings: those of the model in config.json; code: more
    files by their names."""
    weights = {k: in_dtype(w, dtype, k) for k, w in weights.items()}
    chat = loaded.chat
    ends = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, "pad_token_id": None}
    # generate stops at any of these; an answer need not end the text
    stops = [*loaded.answer_ends(tokenizer)]
    generation = {**ends, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    generation["use_cache"] = None if settings["use_cache"] else False
    # ids that only pad the vocabulary are no text
    generation["suppress_tokens"] = [*range(tokenizer.vocab_size, settings["vocab_size"])] or None
    files = {
        "config.json": {**settings, **ends, "dtype": dtype},
        "generation_config.json": {k: i for k, i in generation.items() if i is not None},
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, loaded.model.config.block_size, chat),
    }
    with writing(folder, " by --out"), whole_folder(folder) as new:
        write_safetensors(new / "model.safetensors", weights, {"format": "pt"})
        for name, content in files.items():
            replace_text(new / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        for name, data in (code or {}).items():
            with whole_file(new / name) as f:
                f.write(data)


def export_gguf(loaded: Loaded, tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Write a file for llama.cpp; dtype may also be q8_0. Raises UserError as `write_gguf` does."""
    config, weights = gpt_of(loaded, tokenizer)
    write_gguf(path, config, weights, tokenizer, loaded.chat, dtype, loaded.source)


def export_nanogpt(loaded: Loaded, tokenizer: Tokenizer, folder: Path, dtype: str) -> list[str]:
    """Write a folder with the ckpt.pt of a classic model, which nanoGPT's programs load, and for
    characters, or other texts in a table, the meta.pkl of its data set; returns their names."""
    config, weights = gpt_of(loaded, tokenizer)
    config = plain(config)
    others = {k: v for k, v in asdict(config).items() if k not in CLASSIC_KEYS}
    default = asdict(GPTConfig())
    lacking = [f"{k}={v}" for k, v in others.items() if v != default[k] and k not in NOT_NEEDED]
    if lacking:
        raise UserError(
            f"{loaded.source} is no model of nanoGPT's, which has no {', '.join(lacking)}; "
            "--to=safetensors takes every model"
        )
    weights = {k: in_dtype(w, dtype, k).clone() for k, w in weights.items()}  # without padding
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    before, data = loaded.checkpoint or {}, io.BytesIO()
    state = {
        "model": weights,
        "model_args": {k: getattr(config, k) for k in CLASSIC_KEYS},
        "iter_num": before.get("iter_num", 0),
        "best_val_loss": before.get("best_val_loss", float("inf")),
        "config": loaded.config,
    }
    torch.save(state, data)
    with writing(folder, " by --out"), whole_folder(folder) as new:
        with whole_file(new / CKPT) as f:
            f.write(data.getbuffer())
        if (meta := tokenizer.nanogpt_meta()) is not None:
            with whole_file(new / META) as f:
                pickle.dump(meta, f)
        return sorted(path.name for path in new.iterdir())


def portable(loaded: Loaded, tokenizer: Tokenizer, dtype: str) -> dict:
    """A checkpoint of a model of any kind, with weights in `dtype`, for runs/portable.py."""
    converted, weights = {}, {}
    for name, w in loaded.model.state_dict().items():  # a tied weight is converted only once
        place = (w.data_ptr(), w.shape)
        if place not in converted:
            converted[place] = in_dtype(w.detach(), dtype, name)
        weights[name] = converted[place]
    return {
        **(loaded.checkpoint or {}),
        **describe_model(loaded.model, loaded.name),
        "model": weights,
        "tokenizer": tokenizer.to_dict(),
        "chat_template": loaded.chat_template,
        "config": loaded.config,
    }
