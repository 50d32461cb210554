"""What a trained vocabulary is like, as lines of text: how short it makes which texts, what it
holds, and what more or fewer tokens would change."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bonsai.files.access import save_picture
from bonsai.system.caches import keep_fonts
from bonsai.system.tables import columns
from bonsai.tokenizers.base import Tokenizer
from bonsai.tokenizers.bpe import BPETokenizer
from bonsai.tokenizers.samples import LANGUAGES, OTHERS
from bonsai.tokenizers.view import show

SIZES = tuple(2**k for k in range(8, 17))  # 256 ... 65,536
Curve = list[tuple[int, float, float]]  # vocabulary size, tokens per byte of seen and unseen text


def compression(tokenizers: Mapping[str, Tokenizer], texts: Sequence[str]) -> str:
    """Bytes per token of `texts`, and of the samples the number of tokens too."""
    samples = {"your text": texts} | {k: [text] for k, text in (LANGUAGES | OTHERS).items()}
    rows = [["bytes per token (tokens)", "bytes", *tokenizers]]
    for name, group in samples.items():
        size = sum(len(text.encode("utf-8", "replace")) for text in group)
        row = [name, f"{size:,}"]
        for tokenizer in tokenizers.values():
            tokens = sum(map(len, tokenizer.encode_batch(group)))
            row.append(f"{size / max(tokens, 1):.2f} ({tokens:,})")
        rows.append(row)
    return columns(rows)


def longest_tokens(tokenizer: BPETokenizer, count: int = 20) -> str:
    """The longest tokens, by characters as they are shown."""
    tokens = [show(token) for token in tokenizer.tokens if token and len(token) > 1]
    longest = sorted(tokens, key=lambda token: (-len(token), token))[:count]
    return "longest tokens: " + "  ".join(longest)


def merges_as_learnt(tokenizer: BPETokenizer, count: int = 20) -> str:
    """The first and the last merges."""
    merges = list(enumerate(tokenizer.merges(), 256))
    if len(merges) > 2 * count:
        merges = [*merges[:count], None, *merges[-count:]]
    lines = ["merges as they were learnt:"]
    for entry in merges:
        if entry is None:
            lines.append("    ...")
        elif entry[1] is not None:
            i, (a, b) = entry
            lines.append(f"    {i:6d}  {show(a)} + {show(b)} -> {show(a + b)}")
    return "\n".join(lines)


def unused_tokens(tokenizer: BPETokenizer, texts: Sequence[str], count: int = 10) -> str:
    """Tokens that the text it was trained on does not contain: steps on the way to longer ones, and
    bytes. A model never learns what they mean."""
    used = Counter(i for ids in tokenizer.encode_batch(texts) for i in ids)
    unused = [i for i, token in enumerate(tokenizer.tokens) if token and i not in used]
    steps = [show(tokenizer.tokens[i]) for i in unused if len(tokenizer.tokens[i]) > 1]
    examples = f", such as {'  '.join(steps[:count])}" if steps else ""
    return (
        f"tokens that do not occur in your text: {len(unused)} of {len(tokenizer.tokens)}: "
        f"{len(unused) - len(steps)} bytes and {len(steps)} merges{examples}"
    )


def size_curve(
    texts: Sequence[str], pattern: str | None, sizes: Sequence[int] = SIZES, fast: bool = True
) -> Curve:
    """Tokens per byte by vocabulary size. One training is enough: the first n tokens of a large
    vocabulary are the vocabulary of n. A tenth of the text is kept out of it, as unseen text."""
    seen, unseen = held_out(texts)
    largest = BPETokenizer.train(seen, max(sizes), pattern, special_tokens=(), fast=fast)
    curve: Curve = []
    for size in sizes:
        if size > largest.vocab_size > 256:
            break  # nothing left to merge
        tokenizer = largest.first(size)
        curve.append((size, tokens_per_byte(tokenizer, seen), tokens_per_byte(tokenizer, unseen)))
    return curve


def held_out(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Nine tenths and one tenth: every tenth text, or of fewer than ten the end of each."""
    if len(texts) >= 10:
        return [t for i, t in enumerate(texts) if i % 10 != 9], list(texts[9::10])
    cuts = [len(text) * 9 // 10 for text in texts]
    return [t[:cut] for t, cut in zip(texts, cuts)], [t[cut:] for t, cut in zip(texts, cuts)]


def tokens_per_byte(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return sum(map(len, tokenizer.encode_batch(texts))) / max(size, 1)


def curve_table(curve: Curve, width: int) -> str:
    """The curve in numbers, with the parameters of an embedding `width` wide."""
    rows = [["vocabulary", "tokens per byte", "of unseen text", f"embedding at n_embd={width}"]]
    rows += [
        [f"{size:,}", f"{seen:.3f}", f"{unseen:.3f}", f"{size * width / 1e6:.2f}M"]
        for size, seen, unseen in curve
    ]
    return columns(rows)


def draw_curve(curve: Curve, width: int, path: str) -> None:
    """The curve as a picture: tokens per byte falling, embedding parameters rising."""
    keep_fonts()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes, seen, unseen = zip(*curve)
    figure, left = plt.subplots(figsize=(7, 4.2), layout="constrained")
    left.plot(sizes, seen, "o-", label="text it was trained on")
    left.plot(sizes, unseen, "o--", label="unseen text")
    left.set(xscale="log", xlabel="vocabulary size", ylabel="tokens per byte", ylim=(0, None))
    left.set_xticks(sizes, [f"{n // 1024}K" if n >= 1024 else str(n) for n in sizes], minor=False)
    left.minorticks_off()
    right = left.twinx()
    right.plot(sizes, [n * width / 1e6 for n in sizes], color="gray", label="embedding")
    right.set_ylabel(f"million embedding parameters at n_embd={width}", color="gray")
    right.set_ylim(0, None)
    left.legend(loc="upper center")
    save_picture(figure, path, dpi=120)
    plt.close(figure)
