"""Between token ids and text: what a program shows of a model."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch

from bonsai import ROOT, tokenizers
from bonsai.data.dataset import GPT2_VOCAB
from bonsai.data.meta import open_meta
from bonsai.engine import SamplingParams, generate
from bonsai.models.loading import Loaded
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer


def find_tokenizer(loaded: Loaded) -> tuple[Tokenizer, str]:
    """A model's tokenizer, and where it was found.

    The checkpoint's own; nanoGPT's checkpoints carry none: that of their data folder, else GPT-2's.
    Raises UserError when it has more tokens than the model, and for a model of what is no text.
    """
    vocab_size = loaded.model.config.vocab_size
    state, source = loaded.tokenizer, loaded.tokenizer_note or loaded.source
    name = loaded.config.get("dataset")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        name = ""  # a path, which comes from a file of anyone's, is not followed
    if state is None and name:
        for folder in (Path("data") / name, ROOT / "data" / name):
            meta, file = open_meta(folder)
            if state is None and meta.get("tokenizer"):
                state, source = meta["tokenizer"], str(file)
            elif state is None and file and vocab_size < GPT2_VOCAB:
                raise UserError(
                    f"{loaded.source} was trained on numbers that are no text: {file} names no "
                    "tokenizer"
                )
    if state is None and loaded.tokenizer_note:
        raise UserError(loaded.tokenizer_note)
    if state is None:
        state, source = {"type": "gpt2"}, "GPT-2's, as neither checkpoint nor data name one"
    tokenizer = tokenizers.from_dict(state)
    if tokenizer.vocab_size > vocab_size:
        where = f": put the meta.json or meta.pkl of its data in data/{name}/" if name else ""
        if not name and loaded.tokenizer is None:
            where = ": it carries none; train.py and eval.py take that of their --dataset"
        raise UserError(
            f"{loaded.source} has {vocab_size} tokens, but its {state['type']} tokenizer has "
            f"{tokenizer.vocab_size}{where}"
        )
    return tokenizer, source


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """What a text is begun with: the end of the one before it, or else a line break."""
    if tokenizer.eot is not None:
        return [tokenizer.eot]
    with suppress(UserError):  # a vocabulary without a newline
        return tokenizer.encode("\n")
    return [0]


def sample_text(
    model: torch.nn.Module,
    tokenizer: dict | None,
    runtime: Runtime,
    tokens: int = 200,
    seed: int = 0,
    track: Callable[[Iterable], Iterable] = iter,
) -> str:
    """A sample of the model's own, begun at an end of text (or a line break).

    tokenizer: Tokenizer.to_dict(), None for GPT-2's, or where the vocabulary is too small for that:
    then the data are numbers, and so is the sample, begun with a 0. track: wraps the iteration over
    the tokens, to stop it.
    """
    vocab_size = model.config.vocab_size
    if tokenizer is None and vocab_size < GPT2_VOCAB:
        params = SamplingParams(tokens, 0.8, top_k=200, seed=seed)
        with runtime.autocast():
            ids = [row[0] for row in track(generate(model, [0], params))]
        return f"{' '.join(map(str, ids))}\n{'-' * 15}"
    coder = tokenizers.from_dict(tokenizer or {"type": "gpt2"})
    params = SamplingParams(tokens, 0.8, top_k=200, seed=seed, vocab_limit=coder.vocab_size)
    with runtime.autocast():
        ids = [row[0] for row in track(generate(model, start_tokens(coder), params))]
    return f"{coder.decode(ids)}\n{'-' * 15}"
