"""SentencePiece (Kudo and Richardson 2018), through its library: unigram or BPE over characters.

    tokenizer = SentencePieceTokenizer.train(texts, vocab_size=4096, kind="unigram")
    tokenizer = SentencePieceTokenizer.from_file("llama.model")

What Llama 1 and 2, Gemma and T5 use. Unlike byte-level BPE its pieces are made of characters, and
of bytes only where a character is not in the vocabulary (byte fallback).
"""

import base64
import binascii
import io
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from bonsai.files.access import read_bytes
from bonsai.system.cores import allowed_cores
from bonsai.system.errors import UserError
from bonsai.tokenizers.base import (
    EOT_TEXT,
    REPLACEMENT,
    MissingLibrary,
    Tokenizer,
    well_formed,
)

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # U+2581: how a piece writes the space
KINDS = ("unigram", "bpe")
LONGEST = 1 << 16  # bytes of a line that is used for training


class SentencePieceTokenizer(Tokenizer):
    """A model file of SentencePiece, held as its bytes.

    Models trained here give back any text as it was. Models of others may not: many tidy it up
    (NFKC, fewer spaces), and without byte fallback a character they do not know is lost.
    The end of a text is the model's own end symbol, "</s>" as a rule, shown as "<|endoftext|>".
    """

    complete = False

    def __init__(self, model: bytes):
        self.model = model
        if not model:  # the library would take it
            raise UserError("a sentencepiece model cannot be empty")
        self.vocab_size = self._processor.get_piece_size()
        self.eot = self._processor.eos_id() if self._processor.eos_id() >= 0 else None
        try:
            whole = len(self._bytes) > 0
        except (ValueError, RuntimeError, IndexError):  # pieces that are no text
            whole = False
        if not whole:
            raise UserError("this sentencepiece model is damaged: it has pieces that are no text")

    @cached_property
    def _processor(self):
        library = _library()
        try:
            return library.SentencePieceProcessor(model_proto=self.model)
        except (RuntimeError, OSError, ValueError):
            raise UserError("this is not a sentencepiece model, or a damaged one") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "SentencePieceTokenizer":
        model = read_bytes(path, what="the sentencepiece model")
        try:
            return cls(model)
        except UserError as e:
            raise UserError(f"{path}: {e}") from None

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int = 350) -> "SentencePieceTokenizer":
        return cls.train(texts, vocab_size)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, kind: str = "unigram"
    ) -> "SentencePieceTokenizer":
        """Learn a model from the lines of `texts`. Nothing is normalised, so that every text comes
        back. A text of little variety gives a smaller vocabulary (unigram) or an error (bpe)."""
        if kind not in KINDS:
            raise UserError(f"no sentencepiece model {kind!r}: known are {', '.join(KINDS)}")
        if vocab_size < 256 + 2:
            raise UserError(f"vocab_size is {vocab_size}: a sentencepiece model needs 258 or more")
        library, model = _library(), io.BytesIO()
        try:
            library.SentencePieceTrainer.train(
                sentence_iterator=_training_lines(texts),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                hard_vocab_limit=kind == "bpe",
                byte_fallback=True,
                character_coverage=0.9995,  # the rarest characters are left to the bytes
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,  # indentation
                split_digits=True,
                max_sentence_length=LONGEST,
                unk_id=0,
                eos_id=1,
                eos_piece=EOT_TEXT,
                bos_id=-1,
                pad_id=-1,
                num_threads=allowed_cores(),
                minloglevel=2,
            )
        except RuntimeError as e:
            if "sentences_.empty()" in str(e):
                raise UserError("there is no text to train a sentencepiece model on") from None
            if few := re.search(r"required_chars. \d+ vs (\d+)", str(e)):
                raise UserError(
                    f"vocab_size is {vocab_size}: with the characters of this text it must be at "
                    f"least {few[1]}"
                ) from None
            limit = re.search(r"<= (\d+)", str(e))
            raise UserError(
                f"this text is not enough for {vocab_size} sentencepiece tokens"
                f"{f': choose vocab_size={limit[1]} or less' if limit else f' ({e})'}"
            ) from None
        return cls(model.getvalue())

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        text = well_formed(text)
        if not (allow_special and self.eot is not None):
            return self._encode_plain(text)
        ids: list[int] = []
        for part in text.split(EOT_TEXT):
            ids += [*self._encode_plain(part), self.eot]
        return ids[:-1]

    def _encode_plain(self, text: str) -> list[int]:
        if self._mark is None:
            return self._processor.encode(text)
        ids: list[int] = []
        for part in text.split(SPACE):  # the character itself would come back as a space
            ids += [*self._processor.encode(part), *self._mark]
        return ids[: -len(self._mark)]

    @cached_property
    def _mark(self) -> list[int] | None:
        """The ids of U+2581's bytes, None in a model that has no bytes or begins every text with a
        space of its own."""
        processor = self._processor
        ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode("utf-8")]
        return ids if all(map(processor.is_byte, ids)) and not self._space_first else None

    @cached_property
    def _space_first(self) -> bool:
        """Whether the model puts a space before every text, which decoding takes away again."""
        pieces = self._processor.encode("a", out_type=str)
        return bool(pieces) and pieces[0].startswith(SPACE)

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each id."""
        table = []
        for i in range(self.vocab_size):
            piece = self._processor.id_to_piece(i)
            if self._processor.is_byte(i):
                table.append(bytes([int(piece[3:5], 16)]))
            elif i == self.eot:
                table.append(EOT_TEXT.encode("utf-8"))
            elif self._processor.is_unknown(i):
                table.append(REPLACEMENT.encode("utf-8"))
            elif self._processor.is_control(i):
                table.append(b"")
            else:
                table.append(piece.replace(SPACE, " ").encode("utf-8"))
        return table

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        unknown, n = REPLACEMENT.encode("utf-8"), self.vocab_size
        data = b"".join(self._bytes[i] if 0 <= i < n else unknown for i in map(int, ids))
        return data.removeprefix(b" ") if self._space_first else data

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._mark is not None and any(SPACE in text for text in texts):
            return super().encode_batch(texts)
        texts = [well_formed(text) for text in texts]
        return self._processor.encode(texts, num_threads=allowed_cores()) if texts else []

    def to_dict(self) -> dict:
        return {"type": "sentencepiece", "model": base64.b64encode(self.model).decode()}

    @classmethod
    def from_dict(cls, state: dict) -> "SentencePieceTokenizer":
        try:
            return cls(base64.b64decode(state["model"], validate=True))
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise UserError('a sentencepiece tokenizer needs its "model" in base64') from None


def _training_lines(texts: Iterable[str]) -> Iterable[str]:
    """The lines of the texts, which is what the library learns from; it drops longer ones whole."""
    step = LONGEST // 4  # characters, of at most four bytes
    for text in texts:
        for line in well_formed(text).replace("\0", "").split("\n"):
            yield from (line[i : i + step] for i in range(0, len(line), step))


def _library():
    try:
        import sentencepiece
    except ImportError:
        raise MissingLibrary(
            "sentencepiece models need a library: pip install sentencepiece"
        ) from None
    return sentencepiece
