"""Tokenizers written as Hugging Face's files; bonsai/tokenizers/hugging_face.py reads them again.

tokenizer.json is all that the `tokenizers` library needs, and gives the same ids: byte-level BPE
for ours, GPT-2's, GPT-4's and plain bytes (BPE without merges); a table of words for characters.
tokenizer_config.json says which token ends a text, and has the chat template as Jinja. What it does
otherwise than encode(): special tokens are found in any text, also where a user wrote them.
"""

from bonsai.system.errors import UserError
from bonsai.tokenizers.base import Tokenizer, well_formed
from bonsai.tokenizers.bpe import BYTES, BPETokenizer
from bonsai.tokenizers.byte import ByteTokenizer
from bonsai.tokenizers.char import CharTokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.gpt import TiktokenTokenizer
from bonsai.tokenizers.hugging_face import CHARACTER, PATTERNS
from bonsai.tokenizers.jinja import jinja
from bonsai.tokenizers.patterns import DIGITS, GPT2
from bonsai.tokenizers.ranks import gpt2_alphabet

# our patterns as their library writes them, whose engine reads possessive signs otherwise
THEIRS = {ours: theirs for theirs, ours in PATTERNS.items()}


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """What tokenizer.json says of a tokenizer. Raises UserError for one that it cannot describe."""
    if isinstance(tokenizer, CharTokenizer):
        return characters_json(tokenizer)
    return bpe_json(as_bpe(tokenizer))


def as_bpe(tokenizer: Tokenizer) -> BPETokenizer:
    """The same ids as byte-level BPE."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer
    if isinstance(tokenizer, TiktokenTokenizer):
        return tokenizer.as_bpe
    if isinstance(tokenizer, ByteTokenizer):
        return BPETokenizer(BYTES, None, {end_of_text(tokenizer): tokenizer.eot})
    kind = tokenizer.to_dict()["type"]
    raise UserError(f"a {kind} tokenizer has no place in tokenizer.json: only BPE, byte and char")


def bpe_json(tokenizer: BPETokenizer) -> dict:
    letters = {byte: c for c, byte in gpt2_alphabet().items()}

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {spelt(token): i for i, token in enumerate(tokenizer.tokens) if token is not None}
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    if twice := next((name for name, _ in special if name in vocab), None):
        raise UserError(
            f"{twice!r} is a special token and a plain one, which tokenizer.json cannot tell apart"
        )
    # special tokens without an entry of their own get the ids that follow
    follow = [i for _, i in special] == [*range(len(vocab), len(vocab) + len(special))]
    pairs = [pair for pair in tokenizer.merges() if pair is not None]
    if token := joined_out_of_turn(tokenizer, {a + b for a, b in pairs}):
        raise UserError(
            f"the token {token!r:.40} comes before those that it is made of, which no list of "
            "merges can say"
        )
    merges = [" ".join(map(spelt, pair)) for pair in pairs]
    model = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False},
        "ignore_merges": True,  # a chunk that is a token is that token, as here
        "vocab": vocab if follow else vocab | dict(special),
        "merges": merges,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        **{"version": "1.0", "truncation": None, "padding": None},
        "added_tokens": [added(name, i) for name, i in special],
        "normalizer": None,
        "pre_tokenizer": cut(tokenizer.pattern, level),
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": model,
    }


def joined_out_of_turn(tokenizer: BPETokenizer, made: set[bytes]) -> bytes | None:
    """A token that merges do not lead to, but that two others join to all the same; None: none."""
    ranks = tokenizer.ranks
    alone = [token for token in ranks if len(token) > 1 and token not in made]
    joined = (t for t in alone if any(t[:n] in ranks and t[n:] in ranks for n in range(1, len(t))))
    return next(joined, None)


def cut(pattern: str | None, level: dict) -> dict:
    """The pre_tokenizer that cuts as our pattern does."""
    if pattern in (GPT2, None):
        return {**level, "use_regex": pattern is not None}
    if pattern == DIGITS:
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, {**level, "use_regex": True}]}
    if pattern not in THEIRS:
        raise UserError(
            f"the tokenizer's pattern is its own ({pattern!r:.60}), and tokenizer.json is read by "
            "another engine of regular expressions, which may cut otherwise: only the patterns "
            "gpt2, gpt4, digits and none are written"
        )
    split = {"type": "Split", "pattern": {"Regex": THEIRS[pattern]}}
    split |= {"behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**level, "use_regex": False}]}


def added(name: str, i: int) -> dict:
    sides = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": name, **sides, "special": True}


def characters_json(tokenizer: CharTokenizer) -> dict:
    """A word for each character; one that has no id is an error there, too."""
    if odd := next((c for c in tokenizer.chars if well_formed(c) != c), None):
        raise UserError(f"the vocabulary has {odd!r}, which no UTF-8 file can hold")
    split = {"type": "Split", "pattern": {"Regex": CHARACTER}}
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": []},
        "normalizer": None,
        "pre_tokenizer": {**split, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {c: i for i, c in enumerate(tokenizer.chars)},
            "unk_token": "<unk>",  # has no entry: nothing becomes it
        },
    }


def tokenizer_config(tokenizer: Tokenizer, context: int, chat: ChatTemplate | None = None) -> dict:
    """What tokenizer_config.json says. context: tokens that the model can take."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if tokenizer.eot is not None:  # what a text begins with, too
        config |= dict.fromkeys(("bos_token", "eos_token"), end_of_text(tokenizer))
    if chat is not None:
        config["chat_template"] = jinja(chat)
    return config


def end_of_text(tokenizer: Tokenizer) -> str:
    """How the token that ends a text is written."""
    return tokenizer.decode([tokenizer.eot])
