"""From token ids to text: a model's tokenizer, how a text begins, and samples."""

import re
from contextlib import suppress

import torch

from bonsai import tokenizers
from bonsai.data.dataset import GPT2_VOCAB, tokenizer_in_training
from bonsai.data.meta import open_meta, places
from bonsai.engine import SamplingParams, generate
from bonsai.models.loading import Loaded
from bonsai.system.errors import UserError
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer, UnknownText


def find_tokenizer(loaded: Loaded) -> tuple[Tokenizer, str]:
    """A model's tokenizer, and where it was found.

    It is the checkpoint's own. nanoGPT's checkpoints carry none: for them it is that of their data
    folder, else GPT-2's. Raises UserError if it has more tokens than the model, and for a model
    whose data are not text.
    """
    vocab_size = loaded.model.config.vocab_size
    state, source = loaded.tokenizer, loaded.tokenizer_note or loaded.source
    name = loaded.config.get("dataset")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        name = ""  # a path in a file that may come from anyone is not followed
    if state is None and name:
        for folder in places(name):
            meta, file = open_meta(folder)
            if meta.get("tokenizer"):
                state, source = meta["tokenizer"], str(file)
                break
            if file and (meta.get("note") or vocab_size < GPT2_VOCAB):
                why = f"{file} names no tokenizer: bonsai/tokenizers/table.py makes numbers texts"
                why = meta.get("note") or why
                raise UserError(f"{loaded.source} was trained on numbers that are no text: {why}")
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
    """The tokens with which a text begins: the end of the text before it, or else a line break."""
    if tokenizer.eot is not None:
        return [tokenizer.eot]
    with suppress(UnknownText):  # a vocabulary without a newline
        return tokenizer.encode("\n")
    return [0]


def encode_start(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids to continue; for an empty text, the ones with which a text begins."""
    return tokenizer.encode(text, allow_special=True) if text else start_tokens(tokenizer)


def sample_text(
    model: torch.nn.Module,
    tokenizer: dict | None,
    runtime: Runtime,
    tokens: int = 200,
    seed: int = 0,
    track: Track = iter,
) -> str:
    """A text that the model writes from nothing: it begins at an end of text, or a line break.

    tokenizer: as for `tokenizer_in_training`. If the data are no text but numbers, so is the
    sample, which begins with a 0. track: wraps the iteration over the tokens, to stop it.
    """
    coder, prompt, limit = tokenizer_in_training(tokenizer, model.config.vocab_size), [0], None
    if coder is not None:
        prompt, limit = start_tokens(coder), coder.vocab_size
    params = SamplingParams(tokens, 0.8, top_k=200, seed=seed, vocab_limit=limit)
    with runtime.autocast():
        ids = [row[0] for row in track(generate(model, prompt, params))]
    text = " ".join(map(str, ids)) if coder is None else coder.decode(ids)
    return f"{text}\n{'-' * 15}"
