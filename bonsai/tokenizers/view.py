"""The tokens of a text made visible: for the terminal, and as one HTML file that needs no other.

print(terminal(text, {"gpt2": get("gpt2"), "gpt4": get("gpt4")}))
Path("tokens.html").write_text(html_page([text], tokenizers), encoding="utf-8")
"""

import html
from collections.abc import Iterable, Mapping

from bonsai.tokenizers import Tokenizer

# A token has the same colour wherever it occurs, unless its neighbour has it already.
TERMINAL = (153, 222, 157, 218, 189, 229)  # light backgrounds of the 256-colour palette
PAGE = ("#bcdcff", "#ffd9b0", "#c5efc0", "#ffc9dd", "#dccfff", "#fff0a8")
VISIBLE = {"\n": "↵", "\t": "→", "\r": "␍", " ": "·"}


def show(data: bytes) -> str:
    """A token as a word that can be read: white space as signs, bytes that are no character on
    their own as \\xe4.

    >>> show(b" the"), show(b"\\xe4")
    ('·the', '\\\\xe4')
    """
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(VISIBLE.get(c, c if c.isprintable() else repr(c)[1:-1]) for c in text)


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[tuple[int, bytes]]:
    """Each id with the bytes it stands for."""
    return [(i, tokenizer.decode_bytes([i])) for i in ids]


def colours(ids: Iterable[int], n: int) -> list[int]:
    """A number below `n` for each id, by the id, moved on by one where it would repeat."""
    chosen: list[int] = []
    for i in ids:
        repeats = bool(chosen) and i % n == chosen[-1]
        chosen.append((i + repeats) % n)
    return chosen


def describe_encoding(name: str, text: str, ids: list[int]) -> str:
    """`gpt2: 5 tokens for 12 bytes, 2.40 bytes per token`."""
    size = len(text.encode("utf-8", "replace"))
    ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
    one = "" if len(ids) == 1 else "s"
    return f"{name}: {len(ids):,} token{one} for {size:,} bytes{ratio}"


def terminal(
    text: str,
    tokenizers: Mapping[str, Tokenizer],
    colour: bool = True,
    ids: bool = False,
    allow_special: bool = False,
) -> str:
    """The tokens of `text` for each tokenizer, below each other. Without colour a bar stands
    between tokens. ids: their numbers too."""
    blocks = []
    for name, tokenizer in tokenizers.items():
        encoded = tokenizer.encode(text, allow_special)
        tokens = pieces(tokenizer, encoded)
        if colour:
            line = "".join(
                f"\x1b[30;48;5;{TERMINAL[c]}m{show(data)}\x1b[0m" + "\n" * data.endswith(b"\n")
                for (_, data), c in zip(tokens, colours(encoded, len(TERMINAL)))
            )
        else:
            line = "|".join(show(data).replace("|", "\\|") for _, data in tokens)
            line = line.replace("↵|", "↵|\n")
        lines = [describe_encoding(name, text, encoded), line.removesuffix("\n")]
        if ids:
            lines.append(" ".join(map(str, encoded)))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1em; margin: 0 0 .5em }
.texts > section { border-top: 1px solid #ccc; padding: 1em 0 }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(22em, 1fr)); gap: 1.5em }
.tokens { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.tokens span { border-radius: 3px; padding: 2px 0 }
.tokens span:hover { outline: 2px solid #333 }
.tokens i { opacity: .35; font-style: normal }
.tokens .special { font-weight: bold; border: 1px solid #333 }
"""


def html_page(
    texts: Iterable[str],
    tokenizers: Mapping[str, Tokenizer],
    title: str = "Tokens",
    allow_special: bool = False,
) -> str:
    """One page without scripts or outside files: every text, tokenizers side by side; the pointer
    over a token shows its id and bytes."""
    sections = []
    for text in texts:
        columns = [_column(name, t, text, allow_special) for name, t in tokenizers.items()]
        sections.append(f'<section><div class="side">{"".join(columns)}</div></section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n"
        f'<div class="texts">{"".join(sections)}</div></body></html>\n'
    )


def _column(name: str, tokenizer: Tokenizer, text: str, allow_special: bool) -> str:
    encoded = tokenizer.encode(text, allow_special)
    spans = []
    for (i, data), c in zip(pieces(tokenizer, encoded), colours(encoded, len(PAGE))):
        special = ' class="special"' if i == tokenizer.eot else ""
        title = html.escape(f"{i}: {data!r}", quote=True)
        spans.append(
            f'<span{special} style="background:{PAGE[c]}" title="{title}">{_marked(data)}</span>'
        )
    head = html.escape(describe_encoding(name, text, encoded))
    return f'<div><h2>{head}</h2><div class="tokens">{"".join(spans)}</div></div>'


def _marked(data: bytes) -> str:
    """A token in HTML: signs for white space are pale, a line break follows the sign for one."""
    shown = html.escape(show(data))
    for sign in VISIBLE.values():
        shown = shown.replace(sign, f"<i>{sign}</i>" + ("\n" if sign == "↵" else ""))
    return shown
