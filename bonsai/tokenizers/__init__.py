"""Tokenizers by name. To add one: a file with a `Tokenizer` subclass, and a line in TOKENIZERS
(the shared tests pick it up from there).

    tokenizer = get("gpt2")
    ids = tokenizer.encode("hello")
    same = from_dict(tokenizer.to_dict())   # JSON-able: stands in meta.json and in checkpoints
"""

import json
from pathlib import Path

from bonsai.errors import UserError
from bonsai.tokenizers.base import EOT_TEXT, Tokenizer, well_formed
from bonsai.tokenizers.byte import ByteTokenizer
from bonsai.tokenizers.char import CharTokenizer
from bonsai.tokenizers.gpt import GPT2Tokenizer, GPT4Tokenizer

__all__ = [
    "EOT_TEXT",
    "TOKENIZERS",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "GPT4Tokenizer",
    "Tokenizer",
    "from_dict",
    "get",
    "well_formed",
]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "gpt2": GPT2Tokenizer,
    "gpt4": GPT4Tokenizer,
}


def get(name_or_path: str | Path) -> Tokenizer:
    """A tokenizer by name, or from a JSON file: one that holds to_dict(), or a data set's
    meta.json. 'char' has no vocabulary of its own: see CharTokenizer.from_text."""
    path = Path(name_or_path)
    if path.suffix == ".json":
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(f"cannot read the tokenizer {path}: {e.strerror}") from None
        except ValueError as e:
            raise UserError(f"the tokenizer {path} is not valid JSON: {e}") from None
        if isinstance(state, dict) and "type" not in state:
            state = state.get("tokenizer")
        return from_dict(state)
    if name_or_path == "char":
        raise UserError("the char tokenizer is made from a text: name a data set that uses it")
    return from_dict({"type": str(name_or_path)})


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for what is not a tokenizer."""
    kind = state.get("type") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise UserError(
            f"no tokenizer {kind!r}: known are {', '.join(TOKENIZERS)}, or a .json file of one"
        )
    return TOKENIZERS[kind].from_dict(state)
