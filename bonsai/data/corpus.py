"""From documents to a data set: split into train and val, tokenize, write.

    with Writer(folder, tokenizer) as writer, ProgressBar(size) as progress:
        read = functools.partial(read_pieces, files, options)
        parts = split_documents(read, val_fraction, progress.advance)
        write_documents(writer, parts, tokenizer)
        meta = writer.finish()

One thread reads and splits, others encode batches of text, and the first one writes the ids in the
order of the text. Processes are not needed, as gigatoken and tiktoken release Python's global lock.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bonsai.data.encoders import Encoder, Text, fast_encoder
from bonsai.data.pieces import Piece
from bonsai.data.readers import PIECE, WHOLE, safe_cut
from bonsai.data.sources import Read
from bonsai.data.writer import Writer
from bonsai.system.cores import allowed_cores
from bonsai.system.errors import UserError
from bonsai.system.progress import Advance, no_progress
from bonsai.tokenizers import CharTokenizer, Tokenizer

BATCH = 1 << 20  # bytes of text that are encoded together

Part = tuple[str, bytes, bool]  # split, UTF-8 text, whether the document ends here


def whole_documents(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The documents, each in one piece. Raises UserError for one of more than WHOLE bytes."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece.data)
        size += len(piece.data)
        if size > WHOLE:
            raise UserError(f"a document has more than {WHOLE >> 20} MB: cut it into several")
        if piece.last:
            yield b"".join(parts)
            parts, size = [], 0


# -- splitting ------------------------------------------------------------------------------------


def document_key(data: bytes) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_text(text: str) -> Iterator[Part]:
    """One text, split as nanoGPT does: the first int(0.9 n) of its n characters are "train"."""
    border = int(len(text) * 0.9)
    for split, start, end in (("train", 0, border), ("val", border, len(text))):
        while end - start > PIECE and (cut := safe_cut(text[start : start + PIECE])):
            yield split, text[start : start + cut].encode("utf-8"), False
            start += cut
        yield split, text[start:end].encode("utf-8"), True


def split_documents(
    read: Read, val_fraction: float, progress: Advance = no_progress, cut: bool = True
) -> Iterator[Part]:
    """Send each document to "train" or "val" by a hash of its text (of its first piece, if it has
    several). So the split depends neither on order nor on chance, and equal documents stay
    together. `read` is called twice, first only for the beginnings, which is not progress.

    In a small corpus, where "val" could be empty by chance, it gets the documents with the smallest
    hashes, at least one. A single document is cut: its end is "val"; with cut=False it is an error.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: give a number between 0 and 1, say 0.05")
    enough = max(1000, round(20 / val_fraction))  # documents: then val is empty once in e^20 times
    keys: list[float] = []
    for piece in read(heads=True):
        if piece.first:
            keys.append(document_key(piece.data))
            if len(keys) >= enough:
                break
    if not keys:
        raise UserError("there is no text in the input: every document is empty")
    if len(keys) == 1 and not cut:
        raise UserError("there is one document in the input: give several, one to validate with")
    if len(keys) == 1:  # its length is only known after all of it has been read
        total = sum(len(piece.data) for piece in read())
        yield from _cut(read(progress=progress), total, round(total * val_fraction))
        return
    limit = val_fraction
    if len(keys) < enough:
        distinct = sorted(set(keys))
        if len(distinct) == 1:
            raise UserError(f"all {len(keys)} documents are the same: nothing to validate with")
        limit = distinct[min(max(1, round(val_fraction * len(distinct))), len(distinct) - 1)]
    split = ""
    for piece in read(progress=progress):
        if piece.first:
            split = "val" if document_key(piece.data) < limit else "train"
        yield split, piece.data, piece.last


def _cut(pieces: Iterable[Piece], total: int, val: int) -> Iterator[Part]:
    """Cut one document of `total` bytes: its last `val` bytes are "val", or a few less, so that
    "val" begins after a line end."""
    border, start, split = total - val, 0, "train"
    for piece in pieces:
        data, cut = piece.data, border - start
        start += len(data)
        if split == "train" and (start > border or piece.last):
            while cut < len(data) and data[cut] & 0xC0 == 0x80:  # inside a character
                cut += 1
            cut = data.find(b"\n", cut, cut + val // 10) + 1 or cut
            yield "train", data[:cut], True
            if cut < len(data):
                yield "val", data[cut:], piece.last
            split = "val"
        else:
            yield split, data, piece.last


# -- tokenizing -----------------------------------------------------------------------------------


def char_tokenizer(pieces: Iterable[Piece]) -> tuple[CharTokenizer, str]:
    """The tokenizer of all characters in `pieces`, and the text that ends each document: a newline
    if there are several documents, because characters have no end-of-text token."""
    seen = np.zeros(0x110000, bool)
    documents = 0
    for piece in pieces:
        seen[np.frombuffer(piece.data.decode("utf-8").encode("utf-32-le"), "<u4")] = True
        documents += piece.first
    if not documents:
        raise UserError("there is no text in the input: every document is empty")
    terminator = "\n" if documents > 1 else ""
    chars = set(map(chr, np.flatnonzero(seen).tolist()))
    return CharTokenizer.from_text(chars.union(terminator)), terminator


class Encoded(NamedTuple):
    """What a batch of documents became."""

    ids: np.ndarray  # (n,)
    text_bytes: int
    mask: np.ndarray | None = None  # (n,) of 0 and 1; 0: context only


def write_documents(
    writer: Writer,
    parts: Iterable[Part],
    tokenizer: Tokenizer,
    eot: bool = True,
    terminator: str = "",
    workers: int = 0,
    encoder: str = "auto",
) -> Encoder:
    """Tokenize `parts` in batches and add them to the writer; returns the encoder that did it.

    Every document is made to end with the text `terminator`; if the tokenizer has an end-of-text
    token, that follows, unless eot is False. workers: threads that encode; 0: one per core.
    encoder: see `fast_encoder`.
    """
    encode = fast_encoder(tokenizer, eot, encoder)
    end = terminator.encode("utf-8")
    ended = (
        (split, data + end if ends and not data.endswith(end) else data, ends)
        for split, data, ends in parts
    )

    def encoded(batch: Sequence[Text]) -> Encoded:
        return Encoded(encode(batch), sum(len(data) for data, _ in batch))

    write_encoded(writer, ended, encoded, workers)
    if encode.loses_text:
        print("the tokens do not give the text back, as of unknown words: no bits per byte")
        writer.forget_bytes()
    return encode


def write_encoded(
    writer: Writer,
    parts: Iterable[Part],
    encode: Callable[[Sequence[Text]], Encoded],
    workers: int = 0,
) -> None:
    """Add `parts` to the writer in batches that `encode` makes tokens of, in as many threads as
    there are workers; 0: one per core."""
    if workers < 0:
        raise UserError(f"workers is {workers}: give a number of threads, or 0 for one per core")
    workers = workers or allowed_cores()
    batches: dict[str, list[Text]] = {}  # of each split
    sizes: dict[str, int] = {}
    pending: deque[tuple[str, int, int, Future]] = deque()

    def submit(split: str) -> None:
        batch, size = batches.pop(split), sizes.pop(split)
        # Mostly of BATCH bytes. Text that can be cut nowhere comes in much larger ones, and takes
        # up to 30 times its size while it is encoded
        while pending and sum(n for _, n, _, _ in pending) + size > 4 * workers * BATCH:
            write_first()
        documents = sum(ends for _, ends in batch)
        pending.append((split, size, documents, pool.submit(encode, batch)))

    def write_first() -> None:
        split, _, documents, future = pending.popleft()
        ids, size, mask = future.result()
        writer.add(split, ids, text_bytes=size, documents=documents, mask=mask)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for split, data, ends in parts:
                batches.setdefault(split, []).append((data, ends))
                sizes[split] = sizes.get(split, 0) + len(data)
                if sizes[split] >= BATCH or len(batches[split]) >= 4096:
                    submit(split)
                while pending and (len(pending) > 2 * workers or pending[0][-1].done()):
                    write_first()
            for split in list(batches):
                submit(split)
            while pending:
                write_first()
        except BaseException:  # batches that wait need not be encoded any more
            pool.shutdown(cancel_futures=True)
            raise
