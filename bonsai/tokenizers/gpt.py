"""The vocabularies of GPT-2 and GPT-4, through tiktoken.

The sizes are written down here, and a vocabulary is loaded when it is first used. So data sets and
checkpoints can be opened even if tiktoken, or its download, is missing.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

from bonsai.system.cores import allowed_cores
from bonsai.system.errors import UserError
from bonsai.tokenizers.base import EOT_TEXT, REPLACEMENT, Tokenizer
from bonsai.tokenizers.bpe import BPETokenizer
from bonsai.tokenizers.patterns import GPT2, GPT4, has_long_blank


class TiktokenTokenizer(Tokenizer):
    """Byte-level BPE, which encodes any text. The ids are those of tiktoken's encode_ordinary."""

    type: str  # our name
    encoding: str  # tiktoken's name
    pattern: str  # cuts the text into chunks

    @cached_property
    def _bpe(self):
        try:
            import tiktoken
        except ImportError:
            raise UserError(
                f"the {self.type} tokenizer needs tiktoken: pip install tiktoken"
            ) from None
        try:
            bpe = tiktoken.get_encoding(self.encoding)
        except (OSError, ValueError) as e:  # requests' errors are OSErrors; ValueError: wrong hash
            raise UserError(
                f"cannot load the {self.encoding} vocabulary, which tiktoken downloads once "
                f"({type(e).__name__}): without a network, let TIKTOKEN_CACHE_DIR name a folder "
                f"that holds it"
            ) from None
        assert (bpe.n_vocab, bpe.eot_token) == (self.vocab_size, self.eot)
        return bpe

    @cached_property
    def as_bpe(self) -> BPETokenizer:
        """The same vocabulary with our slower encoder, for texts that tiktoken cannot split."""
        tokens: list[bytes | None] = [None] * self.eot
        for token, i in self._bpe._mergeable_ranks.items():
            tokens[i] = token
        return BPETokenizer(tokens, self.pattern, {EOT_TEXT: self.eot}, fast=False)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        if has_long_blank(text):
            return self.as_bpe.encode(text, allow_special)
        if allow_special:
            return self._bpe.encode(text, allowed_special={EOT_TEXT}, disallowed_special=())
        return self._bpe.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if any(map(has_long_blank, texts)):
            return super().encode_batch(texts)
        return self._bpe.encode_ordinary_batch(list(texts), num_threads=allowed_cores())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = [int(i) for i in ids]
        try:
            return self._bpe.decode_bytes(ids)
        except (KeyError, OverflowError):  # an id outside the vocabulary, say of a padded head
            return b"".join(map(self._bytes_of, ids))

    def _bytes_of(self, i: int) -> bytes:
        try:
            return self._bpe.decode_single_token_bytes(i)
        except (KeyError, OverflowError):
            return REPLACEMENT.encode()

    def to_dict(self) -> dict:
        return {"type": self.type}


class GPT2Tokenizer(TiktokenTokenizer):
    """GPT-2's 50,257 tokens (Radford et al. 2019).

    >>> GPT2Tokenizer().encode("hello world")
    [31373, 995]
    """

    type, encoding, pattern = "gpt2", "gpt2", GPT2
    vocab_size, eot = 50257, 50256


class GPT4Tokenizer(TiktokenTokenizer):
    """GPT-4's cl100k_base: 100,277 ids, more than uint16 can hold."""

    type, encoding, pattern = "gpt4", "cl100k_base", GPT4
    vocab_size, eot = 100277, 100257
