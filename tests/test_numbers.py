"""A measured number that stands in several places is the same number in each of them.

It lives where it was measured: in docs/BENCHMARKS.md, those of models of bytes in docs/bytes.md,
those of the studies in projects/*/readme.md. Whoever quotes it elsewhere adds a line here.
"""

import math
import re
from decimal import Decimal
from functools import cache

import pytest
from helpers.programs import ROOT

# A row: where a number was measured, then where it is quoted, each as "page: words around {}".
# ... stands for any words, {min} for minutes made of seconds, {nats} for nats made of bits.
NUMBERS = """
docs/BENCHMARKS.md: | recipe | float32 | eager | 12 x 64 | {}
    README.md: | that recipe: tokens/s, float32 | {}
docs/BENCHMARKS.md: | recipe | float32 | eager | 12 x 64 | ... | float32 | {}
    README.md: | that recipe: tokens/s, float32 | ... | {}
docs/BENCHMARKS.md: | recipe | bfloat16 | eager | 12 x 64 | {}
    README.md: | that recipe: tokens/s, `dtype=auto` | {}
docs/BENCHMARKS.md: | recipe | bfloat16 | eager | 12 x 64 | ... | float32 | {}
    README.md: | that recipe: tokens/s, `dtype=auto` | ... | {} (float32)
docs/BENCHMARKS.md: | char | float32 | eager | 16 x 256 | {}
    README.md: | 10.65M parameters, 16 x 256: tokens/s, float32 | {}
docs/BENCHMARKS.md: | char | float32 | eager | 16 x 256 | ... | float32 | {}
    README.md: | 10.65M parameters, 16 x 256: tokens/s, float32 | ... | {}
docs/BENCHMARKS.md: | char | bfloat16 | eager | 16 x 256 | {}
    README.md: | 10.65M parameters, 16 x 256: tokens/s, `dtype=auto` | {}
docs/BENCHMARKS.md: | char | bfloat16 | eager | 16 x 256 | ... | float32 | {}
    README.md: | 10.65M parameters, 16 x 256: tokens/s, `dtype=auto` | ... | {} (float32)
docs/BENCHMARKS.md: | recipe | float32 | eager | 12 x 64 | ...% | float32 | ...% | {}
    docs/BENCHMARKS.md: Met: {} and ... in float32
docs/BENCHMARKS.md: | char | float32 | eager | 16 x 256 | ...% | float32 | ...% | {}
    docs/BENCHMARKS.md: Met: ... and {} in float32
docs/BENCHMARKS.md: | char | bfloat16 | eager | 16 x 256 | ...% | float32 | ...% | {}
    docs/BENCHMARKS.md: Met: ... in float32, {} in bfloat16
docs/BENCHMARKS.md: ours: {} (mean of 3;
    README.md: whole-split validation loss, mean of 3 seeds | {}
    config/train_shakespeare_char_cpu.py: Expected validation loss: {} on the whole split
    docs/BENCHMARKS.md: Met: {} against 1.898
docs/BENCHMARKS.md: nanoGPT: {} (
    README.md: whole-split validation loss, mean of 3 seeds | ... | {}
docs/BENCHMARKS.md: ours: ... to ...), {} s (median;
    README.md: | that recipe: seconds, median | {}
    config/train_shakespeare_char_cpu.py: {} s in float32 on two cores
docs/BENCHMARKS.md: nanoGPT: ... to ...), {} s (
    README.md: | that recipe: seconds, median | ... | {}
docs/BENCHMARKS.md: ours ... (mean of 3; ...) in {} s (median)
    README.md: (`fast_shakespeare_char_cpu.py`): seconds, median of 3 | {}
    config/fast_shakespeare_char_cpu.py: {} s on two CPU cores
docs/BENCHMARKS.md: ours {} (mean of 3;
    config/fast_shakespeare_char_cpu.py: Expected validation loss: {} on the whole split
    docs/BENCHMARKS.md: | the recipe | {}
docs/BENCHMARKS.md: (median); nanoGPT ... in {} s.
    README.md: (`fast_shakespeare_char_cpu.py`): seconds, median of 3 | ... | {}
    config/fast_shakespeare_char_cpu.py: (nanoGPT: {} s)
docs/BENCHMARKS.md: | ours | 1337 | 130 | {}
    README.md: (`fast_shakespeare_char_cpu.py`): tokens | {}
    config/fast_shakespeare_char_cpu.py: Cost: {} tokens
    docs/BENCHMARKS.md: at a time: the same {} tokens
docs/BENCHMARKS.md: | nanoGPT | 1337 | 2000 | {}
    README.md: (`fast_shakespeare_char_cpu.py`): tokens | ... | {}
    config/train_shakespeare_char_cpu.py: Cost: {}M tokens
docs/BENCHMARKS.md: Met: {} in ... minutes
    README.md: (`fast_shakespeare_char.py`, {}): minutes
    config/fast_shakespeare_char.py: Expected validation loss: {} on the whole split
docs/BENCHMARKS.md: same machine. Met: ... in {} minutes
    README.md: (`fast_shakespeare_char.py`, ...): minutes, median of 3 | {}
    README.md: nanoGPT's GPU result, on a CPU, in {} minutes
    config/fast_shakespeare_char.py: about {} minutes on two CPU cores
docs/BENCHMARKS.md: | ours | 1339 | 650 | ... | ... | ... | ... | {}
    config/fast_shakespeare_char.py: whole split (three seeds, {} to
docs/BENCHMARKS.md: | ours | 1337 | 650 | ... | ... | ... | ... | {}
    config/fast_shakespeare_char.py: whole split (three seeds, ... to {};
docs/BENCHMARKS.md: Tiny Shakespeare, context 256, target {}
    README.md: its GPU recipe's, {}
    config/fast_shakespeare_char.py: nanoGPT's is {}
docs/BENCHMARKS.md: | ours | 1337 | 650 | {}
    config/fast_shakespeare_char.py: Cost: {}M tokens
docs/BENCHMARKS.md: goal 1.44. Met: **{}**
    README.md: an hour on one core: validation loss, mean of 3 seeds | {}
    config/fast_shakespeare_char.py: {} (three seeds, ...) after 20 passes
    docs/fast-training.md: ({} on Tiny Shakespeare after twenty
docs/BENCHMARKS.md: | 1337 | 3,520 | {}
    config/fast_shakespeare_char.py: (three seeds, {} to ...) after 20 passes
docs/BENCHMARKS.md: | 1339 | 3,222 | {}
    config/fast_shakespeare_char.py: to {}) after 20 passes
docs/BENCHMARKS.md: | 124M | float32 | 1 | {}
    README.md: | GPT-2 (124M), one text: tokens/s, float32 | {}
docs/BENCHMARKS.md: | 124M | nanoGPT's generate, float32 | 1 | {}
    README.md: | GPT-2 (124M), one text: tokens/s, float32 | ... | {}
docs/BENCHMARKS.md: | 124M | float32, drafted | 1 | {}
    README.md: tokens/s, float32, its int8 copy guessing ahead | {}
docs/BENCHMARKS.md: | 124M | int8 | 1 | {}
    README.md: | GPT-2, one text: tokens/s, int8 | {}
docs/BENCHMARKS.md: | 124M | int8 | 16 | {}
    README.md: | GPT-2, 16 texts: tokens/s, int8 | {}
docs/BENCHMARKS.md: | char | int8 | 1 | {}
    README.md: | 10.65M parameters, one text: tokens/s, int8 | {}
    docs/BENCHMARKS.md: - 700 tokens/s at 10.65M: met, {}.
docs/BENCHMARKS.md: | char | nanoGPT's generate, float32 | 1 | {}
    README.md: | 10.65M parameters, one text: tokens/s, int8 | ... | {} (float32)
docs/BENCHMARKS.md: | char | int8 | 16 | {}
    README.md: | 10.65M parameters, 16 texts: tokens/s, int8 | {}
docs/BENCHMARKS.md: | 124M | float32 | 1 | ...% | ... | {}%
    docs/BENCHMARKS.md: - 65% of the limit in float32: met, {}%.
docs/BENCHMARKS.md: | 124M | int8 | 1 | ...% | ...% | {}
    docs/BENCHMARKS.md: - 35 times nanoGPT in bfloat16 or int8: met, {} in int8
docs/BENCHMARKS.md: | 124M | float32, drafted | 1 | ... n/a | n/a | {}
    docs/BENCHMARKS.md: - 18 times in float32: met by drafting, {} times
docs/BENCHMARKS.md: | 124M | float32 | 1 | ...% | ...% | {}
    docs/BENCHMARKS.md: the memory allows ..., and {} are reached
docs/BENCHMARKS.md: | 124M | float32 | 16 | ... n/a | {}
    docs/BENCHMARKS.md: met at 124M in float32 ({})
docs/BENCHMARKS.md: | 124M | bfloat16 | 16 | ... n/a | {}
    docs/BENCHMARKS.md: met at 124M in float32 (...) and bfloat16 ({})
docs/BENCHMARKS.md: | char | bfloat16 | 16 | ... n/a | {}
    docs/BENCHMARKS.md: and at 10.65M in bfloat16 ({})
docs/BENCHMARKS.md: | char | int8 | 16 | ... n/a | {}
    docs/BENCHMARKS.md: In int8 {} at 10.65M
docs/BENCHMARKS.md: | 124M | int8 | 16 | ... n/a | {}
    docs/BENCHMARKS.md: and {} at 124M, where attention
docs/BENCHMARKS.md: | 1 | 64 | 120 | ... | ... | ... | {}
    docs/serving.md: clients got {} tokens/s from one thread
docs/BENCHMARKS.md: (`--threads=2`, 30 seconds, no error) the server made {}
    docs/serving.md: from one thread and {} from two
docs/BENCHMARKS.md: | 1 | 64 | 120 | ... | ... | ... | ... | {}%
    docs/BENCHMARKS.md: as many threads, one, it is {}%
docs/BENCHMARKS.md: | classic 124M, 32 x 1024, compiled: tokens/s | ... | **{}** (nanoGPT
    README.md: | GPT-2 (124M), 32 x 1024, compiled: tokens/s, median of 5 | {}
docs/BENCHMARKS.md: | classic 124M, 32 x 1024, compiled: tokens/s | ... | **...** (nanoGPT {})
    README.md: | GPT-2 (124M), 32 x 1024, compiled: tokens/s, median of 5 | ... | {}
docs/BENCHMARKS.md: peak memory, GiB | nanoGPT's | ... | **{}** (nanoGPT
    README.md: | GPT-2 (124M), 32 x 1024, compiled: peak memory, GiB | {}
docs/BENCHMARKS.md: peak memory, GiB | nanoGPT's | ... | **...** (nanoGPT {})
    README.md: | GPT-2 (124M), 32 x 1024, compiled: peak memory, GiB | ... | {}
docs/BENCHMARKS.md: | 355M, 16 x 1024, compiled: tokens/s | ... | ... | {} (nanoGPT
    README.md: | GPT-2 (355M), 16 x 1024, compiled: tokens/s, median of 3 | {}
docs/BENCHMARKS.md: | 355M, 16 x 1024, compiled: tokens/s | ... | ... | ... (nanoGPT {})
    README.md: | GPT-2 (355M), 16 x 1024, compiled: tokens/s, median of 3 | ... | {}
docs/BENCHMARKS.md: in steps of 16 micro-batches, as the run has: tokens/s | ... | ... | **{}**
    README.md: | `config/fast_gpt2.py`: tokens/s | {}
docs/BENCHMARKS.md: s (10.5M tokens) | **{}**; nanoGPT as shipped
    README.md: after 10.8M tokens of C source, 26 s | {}
docs/BENCHMARKS.md: nanoGPT as shipped ..., tuned {} |
    README.md: after 10.8M tokens of C source, 26 s | ... | {}
docs/BENCHMARKS.md: start included: seconds | ... | ... | **{}** (nanoGPT
    README.md: start included: seconds | {}
docs/BENCHMARKS.md: start included: seconds | ... | ... | **...** (nanoGPT {})
    README.md: start included: seconds | ... | {}
docs/BENCHMARKS.md: | one text of 124M, prompt of 100: tokens/s | ... | ... | **{}**
    docs/serving.md: in bfloat16 at {} tokens/s
    README.md: | GPT-2 (124M), one text: tokens/s | {}
docs/BENCHMARKS.md: prompts of 100 and answers of 300: tokens/s | ... | ... | **{}**
    docs/serving.md: and 64 texts together at {}
    README.md: | GPT-2 (124M), 64 texts together: tokens/s | {}
docs/BENCHMARKS.md: | 102 MB of text | {} s
    README.md: | 100 MB of text to GPT-2 tokens on disk: seconds | {}
docs/BENCHMARKS.md: | 102 MB of text | ... s | {} s
    README.md: | 100 MB of text to GPT-2 tokens on disk: seconds | ... | {}
docs/BENCHMARKS.md: from ... to {} bits per byte
    README.md: the title gives it as {} bits per byte
    config/quickstart.py: which is {} bits per byte
    tests/programs/test_quickstart.py: bits per byte; measured {}
docs/BENCHMARKS.md: bits per byte (... to {} nats per token)
    README.md: falling from ... to {}; the title
    config/quickstart.py: Expected validation loss: {}, which
docs/BENCHMARKS.md: bits per byte ({} to ... nats per token
    README.md: falling from {} to ...; the title
docs/BENCHMARKS.md: nats per token) in {} s of training
    config/quickstart.py: tokens, {} s on two cores
docs/BENCHMARKS.md: `make quickstart`: ... steps, {} tokens
    config/quickstart.py: Cost: {}M tokens
docs/BENCHMARKS.md: `make quickstart`: ... steps, ... tokens, {}M parameters
    README.md: trains a GPT of {} million parameters
    config/quickstart.py: A GPT of {}M parameters
config/quickstart.py: max_iters = {}
    docs/BENCHMARKS.md: `make quickstart`: {} steps
    README.md: Loss in nats per token over {} steps
docs/BENCHMARKS.md: validation split ({} tokens,
    data/python_stdlib/readme.md: of byte pairs, and val ... or {};
tests/programs/test_quickstart.py: BOUND = {}
    docs/BENCHMARKS.md: holds it below {})
docs/bytes.md: (4.1 MB, {} s on one core)
    config/megabyte.py: Cost: 4.1M bytes; {} s on one CPU core
    docs/bytes.md: config/megabyte.py # {min} minutes on one core
    README.md: without a tokenizer: {min} minutes
docs/bytes.md: (4.1 MB, ... s on one core): {} bits per byte
    config/megabyte.py: on the whole split, {} bits per byte
    config/megabyte.py: Expected validation loss: {nats} on the whole split
    docs/bytes.md: minutes on one core: {} bits per byte
docs/bytes.md: s on one core): ... bits per byte, strided {}
    config/megabyte.py: ({} strided)
docs/bytes.md: | MEGABYTE 4, short | 512 | ... | ... | ... | ... | {}
    docs/bytes.md: with the short dense model's batches: {},
docs/bytes.md: | MEGABYTE 4, short | 512 | ... | ... | ... | ... | ... | ... | {}
    docs/bytes.md: dense model's batches: ..., 0.08 ahead of it, and {} when
docs/bytes.md: | SpaceByte, short | 512 | ... | ... | ... | ... | {}
    docs/bytes.md: SpaceByte gains most by it: {},
docs/bytes.md: | MEGABYTE | yes | 8 | ... | ... | ... | ... | {}
    docs/bytes.md: each patch, and {} times as fast for eight
projects/translate/readme.md: | encoder-decoder | ... 4 beams | {}
    projects/translate/readme.md: | 10, the default | ... | ... | {}
    README.md: and what it looks at; BLEU {} after
projects/translate/readme.md: | decoder-only | ... | ... | {}
    projects/translate/gpt.py: {} minutes on one CPU core
projects/translate/readme.md: | decoder-only | ... | ... | ... | {}
    projects/translate/gpt.py: validation loss: {} (BLEU
    projects/translate/readme.md: the GPT stands at {}, with its rate
projects/translate/readme.md: | decoder-only | ... greedy | {}
    projects/translate/gpt.py: loss: ... (BLEU {})
projects/image_bytes/readme.md: shades alone makes it {},
    projects/image_bytes/config.py: ({} from the histogram alone)
Makefile: need into .venv: {} GB on the disk
    README.md: with it the environment is {} GB
Makefile: projects need besides: some {} GB
    docs/reading.md: requirements-all.txt` ({} GB)
"""

NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
MADE_OF = {"{}": 1, "{min}": 1 / 60, "{nats}": math.log(2)}  # of what stands where it was measured


def rows() -> list[tuple[str, list[str]]]:
    """Where each number was measured, and where it is quoted."""
    tables = []
    for line in NUMBERS.strip().splitlines():
        if line.startswith(" "):
            tables[-1][1].append(line.strip())
        else:
            tables.append((line, []))
    return tables


@cache
def words_of(page: str) -> str:
    """A page as one line, without the signs that begin a comment."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return " ".join(re.sub(r"^\s*#+ ", "", text, flags=re.M).split())


def look_up(place: str) -> tuple[str, float]:
    """The number at "page: words around {}", and what it is made of."""
    page, _, words = place.partition(": ")
    mark = re.search(r"\{\w*\}", words)[0]
    before, after = (re.escape(part) for part in words.split(mark))
    anything = re.escape("...")
    pattern = rf"{before}{NUMBER}(?![\d,.]*\d){after}".replace(anything, r".{0,90}?")
    numbers = re.findall(pattern, words_of(page))
    assert len(numbers) == 1, f"{page} has {len(numbers)} times: {words}"
    return numbers[0].replace(",", ""), MADE_OF[mark]


@pytest.mark.parametrize("measured, quotes", rows(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_quoted_number_is_the_measured_one(measured, quotes):
    number, _ = look_up(measured)
    assert quotes, f"a line without a quote: {measured}"
    for quote in quotes:
        said, made_of = look_up(quote)
        value = Decimal(number) * Decimal(made_of)
        if "{}M" in quote or "{} million" in quote:  # 1,515,520 as 1.5M
            value = value / 10**6 if value > 10**4 else value
        shown = Decimal(said)
        digits = shown if "." in said else shown.normalize()  # 3,300 is in hundreds
        last = Decimal(10) ** digits.as_tuple().exponent
        assert abs(value - shown) <= last / 2, f"{quote}: {said}, but {measured}: {number}"
