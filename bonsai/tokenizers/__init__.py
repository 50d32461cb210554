"""Tokenizers by name. To add one: a file with a `Tokenizer` subclass (bonsai/tokenizers/base.py
says what it has to do), its import here, and a line in TOKENIZERS. Data can then be prepared with
it, checkpoints carry it, and the shared tests include it. One whose vocabulary is made from a text
gets it from train_tokenizer.py --type=NAME, whose file prepare scripts take.

    tokenizer = get("gpt2")
    ids = tokenizer.encode("hello")
    same = from_dict(tokenizer.to_dict())   # the dict is stored in meta.json and in checkpoints

No file here imports torch; tiktoken, rustbpe, regex and sentencepiece are imported only when they
are needed.
"""

import json
import shlex
from pathlib import Path

from bonsai.files.access import SETTINGS
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.tokenizers.base import EOT_TEXT, MissingLibrary, Tokenizer, UnknownText, well_formed
from bonsai.tokenizers.bpe import BPETokenizer
from bonsai.tokenizers.byte import ByteTokenizer
from bonsai.tokenizers.char import CharTokenizer
from bonsai.tokenizers.gpt import GPT2Tokenizer, GPT4Tokenizer
from bonsai.tokenizers.hugging_face import from_tokenizer_json, read_folder
from bonsai.tokenizers.nanogpt import META, read_nanogpt_meta
from bonsai.tokenizers.sentencepiece import SentencePieceTokenizer
from bonsai.tokenizers.table import TableTokenizer

__all__ = [
    "EOT_TEXT",
    "TOKENIZERS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "GPT4Tokenizer",
    "MissingLibrary",
    "SentencePieceTokenizer",
    "TableTokenizer",
    "Tokenizer",
    "UnknownText",
    "from_dict",
    "get",
    "names",
    "well_formed",
]

TOKENIZERS: dict[str, type[Tokenizer]] = {  # the type in to_dict -> its class
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BPETokenizer,
    "gpt2": GPT2Tokenizer,
    "gpt4": GPT4Tokenizer,
    "sentencepiece": SentencePieceTokenizer,
    "table": TableTokenizer,
}


def names() -> list[str]:
    """The tokenizers that can be made from their name alone."""
    return [name for name, kind in TOKENIZERS.items() if kind.complete]


def get(name_or_path: str | Path) -> Tokenizer:
    """A tokenizer by its name, or from a file or folder: a .json file with to_dict(), a data set's
    folder, meta.json or meta.pkl, a folder of Hugging Face's or its tokenizer.json, or a
    sentencepiece .model file. 'char' has to be made from a text: see CharTokenizer.from_text."""
    path = Path(name_or_path)
    if name_or_path not in TOKENIZERS:
        path = next((path / name for name in ("meta.json", META) if (path / name).exists()), path)
    if path.name == META:
        meta = read_nanogpt_meta(path)
        if meta["tokenizer"] is None:
            raise UserError(meta["note"] or f"{path} holds no tokenizer")
        return from_dict(meta["tokenizer"])
    files = ("config.json", "tokenizer.json", "vocab.json")
    if name_or_path not in TOKENIZERS and any((path / name).exists() for name in files):
        state = read_folder(path)
        if state is None:
            raise UserError(f"{path} has no tokenizer.json, and no vocab.json with merges.txt")
        return from_file(state, path)
    if path.suffix == ".model":
        return SentencePieceTokenizer.from_file(path)
    if path.suffix == ".tiktoken" or path.name == "vocab.bpe":
        raise UserError(
            f"{path} holds neither pattern nor special tokens: make a .json of it with "
            f"python train_tokenizer.py {shlex.quote(f'--ranks={path}')} --pattern=gpt4 "
            "--out=FILE.json"
        )
    if path.suffix == ".json":
        try:
            state = json.loads(read_text(path, "the tokenizer", SETTINGS))
        except (ValueError, RecursionError) as e:
            raise UserError(f"the tokenizer {path} is not valid JSON: {e}") from None
        if isinstance(state, dict) and isinstance(state.get("model"), dict):
            theirs = path.name == "tokenizer.json"  # the files beside it name its end of text
            state = read_folder(path.parent) if theirs else from_tokenizer_json(state, str(path))
        elif isinstance(state, dict) and "type" not in state:
            if not isinstance(state.get("tokenizer"), dict):
                raise UserError(f"{path} holds no tokenizer")
            state = state["tokenizer"]
        return from_file(state, path)
    if name_or_path in TOKENIZERS:
        kind = TOKENIZERS[str(name_or_path)]
        if kind.complete:
            return kind()
        made = "sentencepiece_unigram" if name_or_path == "sentencepiece" else name_or_path
        raise UserError(
            f"the {name_or_path} tokenizer is made from a text: name a data set's folder, or a "
            f".json file that python train_tokenizer.py --type={made} --input=TEXT made"
        )
    raise UserError(
        f"no tokenizer {str(name_or_path)!r}: known are {', '.join(names())}, a .json file that "
        "train_tokenizer.py wrote, a data set's folder or its meta file, a folder of Hugging "
        "Face's, or a sentencepiece .model"
    )


def from_file(state: dict, path: Path) -> Tokenizer:
    """As from_dict, with the file's path in the message of an error."""
    try:
        return from_dict(state)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for what is not a tokenizer."""
    kind = state.get("type") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise UserError(f"no tokenizer of type {kind!r:.60}: known are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[kind].from_dict(state)
