"""Texts that a tokenizer may get wrong: by hand, of strange characters, of Python's library."""

import random
import sysconfig
import unicodedata
from pathlib import Path

from bonsai.tokenizers import EOT_TEXT

HOSTILE = [
    "hello world",
    "",
    " ",
    "\n\n\r\n\t ",
    "\0null\0bytes\0",
    "naïve café, Ελληνικά, русский, 中文, العربية, हिन्दी",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈, combining é ȃ̧, ligature ﬁ",
    "\ufeffbom \u200bzero width \u202eright to left",
    "planes: \u0100 \u4e00 \U00010348 \U0001f9ff \U0010ffff",
    EOT_TEXT,
    f"look-alikes: {EOT_TEXT} <|endoftext <|im_start|> |>",
    "x" * 3000,
    "1234567890 3.14159 'll 'LL don't DON'T    spaces   ",
    "def f(x):\n        return {x: [1, 2, 3]}\n",
]


def library_source(count: int) -> list[str]:
    """The first files of the running Python's library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:count]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def strange_characters() -> list[str]:
    """Some of every plane, with emoji, marks and joiners between them."""
    characters = [chr(i) for i in range(0, 0x110000, 101) if not 0xD800 <= i < 0xE000]
    marks = [chr(i) for i in range(0x300, 0x370)] + ["\u200d", "\ufe0f", "\u20e3"]
    emoji = [chr(i) for i in range(0x1F300, 0x1F650)] + ["👩‍👩‍👧‍👦", "🏳️‍🌈", "1️⃣", "🇬🇧"]
    ascii_ = [chr(i) for i in range(128)] * 8
    return characters + marks + emoji + ascii_


def difficult_texts() -> list[str]:
    rng = random.Random(0)
    characters = strange_characters()
    return [
        *("".join(rng.choices(characters, k=300)) for _ in range(100)),
        "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000),
        unicodedata.normalize("NFD", "naïve Ångström, tiếng Việt, हिन्दी ") * 20,
        "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 in a row" * 20,
        "lone \ud83d and \udc00, turned round \udc00\ud83d, and a pair \ud83d\ude00",
        "x" * 100_000,
        "".join(rng.choices("abcdefgh", k=100_000)),
        " " * 5000 + "word" + "\n" * 5000 + "\t \r\n",
        f"{EOT_TEXT}<|endoftext|<|fim_prefix|><|im_start|>user<|endofprompt|>[INST]</s>",
        "I'LL we'll DON'T 'S 's ſ 'ſ it'ſ K 1234567 12 345,678.90 \x1c\x1d\x85\xa0\u2028",
    ]
