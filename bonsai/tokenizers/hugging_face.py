"""Tokenizers in the files of Hugging Face, read as our own byte-pair encoding, or as characters.

tokenizer.json holds everything; older folders have vocab.json (token -> id) and merges.txt (a merge
a line), which are GPT-2's kind. Both write bytes in the characters of ranks.gpt2_alphabet. What is
not byte-level BPE, or does more to a text than our encoder, is refused by name: its ids would be
others. Nothing of a folder is executed.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from bonsai.files.access import exists
from bonsai.files.jsonfile import read_json_object
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.tokenizers.base import EOT_TEXT
from bonsai.tokenizers.bpe import BYTES, BPETokenizer, merge
from bonsai.tokenizers.char import CharTokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.gpt import GPT2Tokenizer, GPT4Tokenizer
from bonsai.tokenizers.jinja import read_jinja
from bonsai.tokenizers.patterns import DIGITS, GPT2, GPT4
from bonsai.tokenizers.ranks import LARGEST, gpt2_alphabet

MOST_BYTES = 32 * 2**20  # of one file; GPT-2's tokenizer.json has 3.6 MB
LONGEST = 1000  # characters of a token that no merge makes: all ways to cut it in two are tried
# SHA-256 of OpenAI's vocabularies, which need not be written into every checkpoint
OPENAIS = {
    "556debe349074484db3f14a3d44c7a6c4c0ea54ec7afdc91bcb6256c38192655": GPT2Tokenizer,
    "51bbf4ce770595c3ff8d0324f86ee9c2b9b3fdbbcea6e9909777ce3881d81076": GPT4Tokenizer,
}
PATTERNS = {  # as the files write them -> ours, which cuts every text in the same way
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": GPT4,
}
CHARACTER = r"[\s\S]"  # the pattern that makes each character a chunk
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
NAMED = ("eos_token", "bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
OTHERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.bpe")


def read_folder(folder: Path, vocab_size: int = LARGEST) -> dict | None:
    """Tokenizer.to_dict() of a folder's tokenizer, None where the folder has none.

    vocab_size: of the model; special tokens beyond it, which it was never told of, are left out.
    Raises UserError for a tokenizer that is not supported, or damaged.
    """
    folder = Path(folder)
    settings = optional(folder / "tokenizer_config.json")
    special = optional(folder / "special_tokens_map.json")
    if settings.get("auto_map"):
        raise UserError(
            f"{folder}: tokenizer_config.json names code of its own (auto_map), which is never "
            "executed: its tokenizer is not supported"
        )
    if settings.get("add_prefix_space"):  # there it overrules what tokenizer.json says
        raise UserError(
            f"{folder}: its tokenizer is not supported: add_prefix_space of tokenizer_config.json "
            "puts a blank before each text"
        )
    eos = content({**special, **settings}.get("eos_token"))
    if exists(folder / "tokenizer.json"):
        state = read_json_object(folder / "tokenizer.json", MOST_BYTES)
        return from_tokenizer_json(state, str(folder / "tokenizer.json"), vocab_size, eos)
    if not exists(folder / "vocab.json") or not exists(folder / "merges.txt"):
        other = next((name for name in OTHERS if exists(folder / name)), None)
        if other:
            raise UserError(
                f"{folder}: its tokenizer ({settings.get('tokenizer_class') or other}) is not "
                "supported, only byte-level BPE (tokenizer.json, or vocab.json and merges.txt)"
            )
        return None
    kind = settings.get("tokenizer_class") or CLASSES[0]
    if kind not in CLASSES or settings.get("add_bos_token"):
        raise UserError(
            f"{folder}: its tokenizer ({str(kind)[:60]}) is not supported: it does more to a text "
            "than GPT-2's"
        )
    vocab = read_json_object(folder / "vocab.json", MOST_BYTES)
    lines = read_text(folder / "merges.txt", limit=MOST_BYTES).split("\n")
    merges = (line.split(" ") for line in lines if line.strip() and not line.startswith("#version"))
    added = dict(optional(folder / "added_tokens.json"))
    decoder = settings.get("added_tokens_decoder")
    for name, token in decoder.items() if isinstance(decoder, dict) else ():
        if name.isdecimal() and len(name) < 10 and content(token):
            added[content(token)] = int(name)
    names = [content({**special, **settings}.get(name)) for name in NAMED]
    added |= {name: vocab[name] for name in names if name in vocab}
    return bpe_state(vocab, merges, added, GPT2, eos, vocab_size, str(folder))


def read_chat(folder: Path) -> ChatTemplate | None:
    """How a folder's model chats, from chat_template.jinja or else tokenizer_config.json; None
    where nothing says. Raises UserError for a template that `read_jinja` does not read."""
    folder = Path(folder)
    settings = optional(folder / "tokenizer_config.json")
    special = {**optional(folder / "special_tokens_map.json"), **settings}
    path, source = folder / "chat_template.jinja", settings.get("chat_template")
    if exists(path):  # newer; transformers then ignores the other, too
        source = read_text(path, limit=MOST_BYTES)
    elif isinstance(source, list):  # of several, each with a name
        named = [t.get("template") for t in source if kind_of(t, "name") == "default"]
        source = named[0] if named else None
    if source is None:
        return None
    if not isinstance(source, str):
        raise UserError(f"{folder}: the chat_template of tokenizer_config.json is no text")
    tokens = {name: content(special.get(name)) for name in NAMED}
    return read_jinja(source, {name: token for name, token in tokens.items() if token})


def from_tokenizer_json(
    state: dict, name: str, vocab_size: int = LARGEST, eos: str | None = None
) -> dict:
    """Tokenizer.to_dict() of what a tokenizer.json holds; `name` is for messages."""
    model = state.get("model")
    model = model if isinstance(model, dict) else {}
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "WordLevel" and is_of_characters(state):
        return char_state(model.get("vocab"), name)
    if kind != "BPE":
        raise UserError(f"{name}: a tokenizer of type {str(kind)[:40]} is not supported, only BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise UserError(f"{name}: {key}={str(model[key])[:40]} is not supported")
    if state.get("normalizer"):
        raise UserError(f"{name}: its normalizer is not supported: it changes the text")
    if not leaves_alone(state.get("post_processor")):
        raise UserError(f"{name}: its post_processor is not supported: it adds tokens to each text")
    added = {}
    for token in listed(state.get("added_tokens"), name):
        if not isinstance(token, dict) or not content(token) or type(token.get("id")) is not int:
            raise UserError(f"{name}: an added token has no content or no id")
        if not token.get("special") or any(
            token.get(k) for k in ("lstrip", "rstrip", "single_word")
        ):
            raise UserError(
                f"{name}: the added token {content(token)[:40]!r} is not supported, as it is found "
                "in any text"
            )
        added[content(token)] = token["id"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in listed(model.get("merges"), name)]
    pattern = pattern_of(state.get("pre_tokenizer"), name)
    whole = bool(model.get("ignore_merges"))
    return bpe_state(model.get("vocab"), merges, added, pattern, eos, vocab_size, name, whole)


def is_of_characters(state: dict) -> bool:
    """Whether each character is a token, and nothing else is: what tokenizer_json.py writes."""
    part = state.get("pre_tokenizer")
    return (
        kind_of(part) == "Split"
        and part.get("pattern") == {"Regex": CHARACTER}
        and part.get("behavior") == "Isolated"
        and not any(state.get(k) for k in ("added_tokens", "normalizer", "post_processor"))
    )


def char_state(vocab: object, name: str) -> dict:
    """CharTokenizer.to_dict() of a vocabulary (character -> id)."""
    ids = list(vocab.values()) if isinstance(vocab, dict) else [None]
    if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise UserError(f"{name}: its vocabulary is not a table of characters and ids")
    return CharTokenizer(sorted(vocab, key=vocab.get)).to_dict()


def pattern_of(part: object, name: str) -> str | None:
    """The pattern by which a pre_tokenizer cuts a text; UserError for all but byte-level ones."""
    parts = part.get("pretokenizers") if kind_of(part) == "Sequence" else [part]
    kinds = [kind_of(p) for p in listed(parts, name)]
    if kinds == ["ByteLevel"] and not parts[0].get("add_prefix_space"):
        return GPT2 if parts[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:  # cuts at the digits first, and the pieces as GPT-2 does
        digits, level = parts
        plain = level.get("use_regex", True) and not level.get("add_prefix_space")
        if plain and digits.get("individual_digits") is True:
            return DIGITS
    if kinds == ["Split", "ByteLevel"]:
        split, level = parts
        regex = split.get("pattern")
        regex = regex.get("Regex") if isinstance(regex, dict) else None
        plain = not level.get("add_prefix_space") and not level.get("use_regex", True)
        plain = plain and split.get("behavior") == "Isolated" and not split.get("invert")
        if plain and isinstance(regex, str) and regex in PATTERNS:
            return PATTERNS[regex]
    raise UserError(
        f"{name}: a pre_tokenizer of {', '.join(map(str, kinds))[:80]} with these settings is not "
        "supported, only that of GPT-2, GPT-4 or SmolLM on bytes"
    )


def leaves_alone(part: object) -> bool:
    """Whether a post_processor leaves the ids of a text as they are."""
    if part is None or kind_of(part) == "ByteLevel":
        return True
    if kind_of(part) == "Sequence":
        parts = part.get("processors") or []
        return isinstance(parts, list) and all(map(leaves_alone, parts))
    single = part.get("single") if kind_of(part) == "TemplateProcessing" else None
    return (
        isinstance(single, list)
        and all(isinstance(piece, dict) for piece in single)
        and [kind for piece in single for kind in piece] == ["Sequence"]
    )


def bpe_state(
    vocab: object,
    merges: Iterable,
    added: dict[str, int],
    pattern: str | None,
    eos: str | None,
    vocab_size: int,
    name: str,
    whole: bool = False,
) -> dict:
    """BPETokenizer.to_dict() of a vocabulary (token -> id), merges and special tokens. whole: a
    chunk that is a token is that token, whether merges lead to it or not (ignore_merges).

    Our encoder joins the neighbours whose token has the lowest id; theirs, the neighbours that come
    first in a list. For ids in the order of the list, as training gives them, that is the same, and
    each token is checked for it; another order is refused.
    """
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise UserError(f"{name}: its vocabulary is not a table of tokens and ids")
    if not all(type(i) is int and i >= 0 for i in added.values()):
        raise UserError(f"{name}: its added tokens have no ids")
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{name}: tokens of its vocabulary have the same id")
    alphabet = gpt2_alphabet()
    special = {n: i for n, i in added.items() if i < vocab_size}
    plain = {token: i for token, i in vocab.items() if token not in added}
    if max(plain.values(), default=0) >= vocab_size:
        raise UserError(
            f"{name}: its ids reach {max(plain.values())}, the model has {vocab_size} tokens: they "
            "do not belong together"
        )
    tokens: list[bytes | None] = [None] * (max(plain.values(), default=-1) + 1)
    made = merged_tokens(plain, merges, alphabet, name)
    ends = (eos, EOT_TEXT)
    for token, i in plain.items():
        if token in alphabet:
            tokens[i] = bytes([alphabet[token]])
        elif token in made:
            tokens[i] = b"".join(made[token])
        elif whole and token not in ends and alphabet.keys() >= {*token}:
            if len(token) > LONGEST:
                raise UserError(f"{name}: the token {token!r:.40} is too long to be supported")
            if any(token[:n] in plain and token[n:] in plain for n in range(1, len(token))):
                raise UserError(
                    f"{name}: the token {token!r:.40} can be made of two, but no merge does, which "
                    "is not supported"
                )
            tokens[i] = spell(token, alphabet)  # which our encoder never joins either
        else:  # it can be read, but no text is ever encoded so
            special[token] = i
    while tokens and tokens[-1] is None:
        tokens.pop()
    special = dict(sorted(special.items(), key=lambda item: item[1]))
    eot = eos if eos in special else EOT_TEXT
    if tokens == BYTES and special == {EOT_TEXT: 256}:
        return {"type": "byte"}  # the same ids, however a text is cut
    digest = hashlib.sha256(repr((tokens, pattern, special)).encode()).hexdigest()
    if digest in OPENAIS and vocab_size >= OPENAIS[digest].vocab_size:
        return {"type": OPENAIS[digest].type}
    tokenizer = BPETokenizer(tokens, pattern, special, eot=eot)  # checks the rest
    for token, parts in made.items():
        i = plain[token]
        if merge(tokens[i], tokenizer.ranks, limit=i) != list(parts):
            raise UserError(
                f"{name}: its merges are not in the order in which training makes them, which is "
                f"not supported ({token!r})"
            )
    return tokenizer.to_dict()


def merged_tokens(
    plain: dict[str, int], merges: Iterable, alphabet: dict[str, int], name: str
) -> dict[str, tuple[bytes, bytes]]:
    """The tokens that merges make -> the two that each is made of. UserError where the ids are not
    in the order of the merges."""
    made: dict[str, tuple[bytes, bytes]] = {}
    last, pairs = -1, set()
    try:
        for a, b in merges:
            if (a, b) in pairs:  # of which theirs takes the last
                raise UserError(f"{name}: the merge of {a!r:.40} and {b!r:.40} is there twice")
            pairs.add((a, b))
            if a + b in made:
                continue
            i = plain[a + b]
            if i <= last or a not in plain or b not in plain:
                raise UserError(
                    f"{name}: the ids of its tokens are not in the order of its merges, which is "
                    f"not supported ({a + b!r})"
                )
            made[a + b], last = (spell(a, alphabet), spell(b, alphabet)), i
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{name}: its merges are not pairs of byte-level tokens") from None
    return made


def spell(token: str, alphabet: dict[str, int]) -> bytes:
    return bytes(alphabet[c] for c in token)


def kind_of(part: object, key: str = "type") -> str | None:
    return part.get(key) if isinstance(part, dict) else None


def listed(value: object, name: str) -> list:
    if not isinstance(value, list | None):
        raise UserError(f"{name} is damaged: a list is missing")
    return value or []


def content(token: object) -> str | None:
    """The text of a special token, which the files write as a string or as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def optional(path: Path) -> dict:
    return read_json_object(path, MOST_BYTES) if exists(path) else {}
