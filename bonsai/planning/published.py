"""How fast GPT-2 (124M) trains elsewhere: published tokens/s of one GPU, beside a measured rate."""

from bonsai.system.tables import table

# (project, GPU, tokens/s of one, whose figure it is); T = 1024, bf16, several GPUs unless it says
# so. "derived": of the time that a run took; nobody printed it
PUBLISHED = (
    ("nanoGPT, compiled", "H200", 516e3, "measured beside ours, docs/BENCHMARKS.md"),
    ("llm.c", "H100", 468e3, "derived, from 45 minutes for 10B tokens on eight"),
    ("modded-nanogpt, simple baseline", "H100", 448e3, "records/track_3_optimization, on eight"),
    ("modded-nanogpt, simple baseline", "H200", 490e3, "records/track_3_optimization, on one"),
    ("modded-nanogpt, record 89", "H100", 592e3, "its log, on eight; fp8 and FlashAttention 3"),
)

COLUMNS = (
    ("GPT-2 (124M)", "project", ""), ("GPU", "gpu", ""), ("tokens/s of one", "rate", ",.0f"),
    ("this run to it", "ratio", ".2f"), ("source", "source", ""),
)  # fmt: skip


def beside_published(rate: float, gpu: str) -> str:
    """A table of the published rates, headed by the measured one in tokens/s of such a GPU."""
    names = ("project", "gpu", "rate", "source")
    rows = [dict(zip(names, row)) for row in (("this run", gpu, rate, "measured"), *PUBLISHED)]
    return table([{**row, "ratio": rate / row["rate"]} for row in rows], COLUMNS)
