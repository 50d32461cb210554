"""nanoGPT's meta.pkl: the size of a vocabulary, and a table of its tokens, read without executing
anything.

nanoGPT's train.py reads vocab_size from it, its sample.py encodes with `stoi[c]` for each character
and decodes with `itos[i]` for each id. So users put in whatever can be indexed so: characters,
words, a list or a string for itos, NumPy's numbers.
"""

import json
import shlex
from pathlib import Path

from bonsai.files.access import read_bytes
from bonsai.files.pickles import Damaged, Machine, Refused
from bonsai.system.errors import UserError
from bonsai.tokenizers.char import CharTokenizer
from bonsai.tokenizers.gpt import GPT2Tokenizer
from bonsai.tokenizers.table import TableTokenizer

META = "meta.pkl"
LARGEST = 1 << 16  # ids are uint16
SIZE = 4 << 20  # bytes of a meta.pkl: 65,536 characters take half of it
# Python that keeps of a meta.pkl what any program can read.
CONVERSION = """import pickle; p = PATH; m = pickle.load(open(p, "rb")); \
t = {str(s): int(i) for s, i in m["stoi"].items()}; n = int(m["vocab_size"]); \
m = {"vocab_size": n, "stoi": t, "itos": {i: s for s, i in t.items()}}; \
pickle.dump(m, open(p, "wb"))"""


def read_nanogpt_meta(path: Path) -> dict:
    """What a meta.pkl says: vocab_size, tokenizer, and note.

    tokenizer: Tokenizer.to_dict(), or None. Then the note is a line that says why no text can be
    made of the ids; without itos and stoi a vocabulary of GPT-2's size or more is taken for GPT-2's
    and has no note. Raises UserError for a file that is damaged, names code, or has no vocab_size.
    """
    meta = read_meta_pickle(path)
    size = meta.get("vocab_size")
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise UserError(f"{path} has no vocab_size from 1 to {LARGEST:,} but {shown(size)}")
    if size >= GPT2Tokenizer.vocab_size and not meta.keys() & {"itos", "stoi"}:
        return {"vocab_size": size, "tokenizer": None, "note": ""}
    tokenizer, why = table_of(meta, size)
    note = why and f"{path} makes no text of ids: {why}; sample.py needs itos there, id -> text"
    return {"vocab_size": size, "tokenizer": tokenizer, "note": note}


def read_meta_pickle(path: Path) -> dict:
    """The values in a meta.pkl; UserError for all but plain ones."""
    data = read_bytes(path, SIZE)
    try:
        meta = Machine(data).run()
    except Refused as e:
        code = CONVERSION.replace("PATH", json.dumps(str(path)))
        raise UserError(
            f"refused to load {path}: {e}; if you trust it, this keeps the texts and numbers that "
            f"are needed: {shlex.join(['python', '-c', code])}"
        ) from None
    except Damaged as e:
        raise UserError(f"{path} is damaged ({e}): prepare the data again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path} holds a {type(meta).__name__}, not a dict")
    return meta


def table_of(meta: dict, size: int) -> tuple[dict | None, str]:
    """The tokenizer of a meta.pkl, as Tokenizer.to_dict(), or why there is none.

    The text of an id is that of itos, else of stoi; the id of a text is that of stoi, else of itos.
    Ids that the vocabulary does not have are ignored: the data cannot hold them.
    """
    itos, stoi = meta.get("itos"), meta.get("stoi")
    texts, why = texts_of(itos, size)
    ids = {}
    if isinstance(stoi, dict):
        good = ((t, i) for t, i in stoi.items() if type(t) is str and type(i) is int)
        ids = {t: i for t, i in good if 0 <= i < size}
    for text, i in ids.items():
        texts.setdefault(i, text)
    if not any(texts.values()):
        there = ", ".join(sorted(str(name)[:20] for name in meta))[:80]
        return None, why or f"it has {there}, but neither itos nor stoi with texts"
    for i in sorted(texts):
        ids.setdefault(texts[i], i)
    tokens = [texts.get(i) for i in range(max(texts) + 1)]
    by_place = {text: i for i, text in enumerate(tokens)}
    distinct = len(by_place) == len(tokens) and by_place == ids
    if distinct and all(text and len(text) == 1 for text in tokens):
        return CharTokenizer(tokens).to_dict(), ""
    return TableTokenizer(tokens, ids).to_dict(), ""


def texts_of(itos: object, size: int) -> tuple[dict[int, str], str]:
    """The text of each id below `size`, or none and why."""
    if isinstance(itos, str | list | tuple):
        itos = dict(enumerate(itos))
    if itos is None:
        return {}, ""
    if not isinstance(itos, dict):
        return {}, f"its itos is {shown(itos)}, no table of texts"
    odd = next((i for i in itos if type(i) is not int), None)
    if odd is not None:
        return {}, f"its itos has {shown(odd)} where an id belongs"
    texts = {i: text for i, text in itos.items() if 0 <= i < size and text is not None}
    odd = next((i for i, text in texts.items() if type(text) is not str), None)
    if odd is not None:
        return {}, f"its itos has {shown(texts[odd])} for the id {odd}, which is no text"
    return texts, "" if texts else f"its itos has no text for an id below {size:,}"


def shown(value: object) -> str:
    """A value in a few words. Others within it are not shown: they may be nested without end."""
    is_plain = isinstance(value, str | bytes | int | float | None)
    return f"{value!r:.40}" if is_plain else f"a {type(value).__name__}"
