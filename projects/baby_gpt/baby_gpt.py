"""A GPT small enough to see whole: two tokens, a context of three, a Markov chain of eight states.

    python projects/baby_gpt/baby_gpt.py
    python projects/baby_gpt/baby_gpt.py --sequence=abcabcabb --vocabulary=abc --context=2

A GPT with a finite context is a finite-state Markov chain: its state is the context, and the next
token moves it to the next state. Here the chain is small enough to be drawn: before, during and
after training, by Graphviz (states.svg), and on a page with a slider over the steps (baby_gpt.html,
which needs nothing but a browser).
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from bonsai.files.access import write_whole
from bonsai.files.textfile import check_writable
from bonsai.system.errors import UserError, end_if_told, run
from bonsai.system.tables import table
from bonsai.tokenizers import CharTokenizer
from configurator import Config, configure
from model import GPT, GPTConfig

# what it learns
sequence = "111101111011110"  # each window of it is a row of the one batch
vocabulary = "01"  # its symbols, in the order of their ids
context = 3  # symbols that the model sees [>= 1]
# the model: 12,656 parameters
n_layer = 4  # [>= 1]
n_head = 4  # [>= 1]
n_embd = 16  # [>= 1]
# training: AdamW with torch's betas, everything decays
steps = 50  # [>= 0]
learning_rate = 1e-3  # [>= 0]
weight_decay = 0.1  # [>= 0]
seed = 1337  # set just before the model is built [>= 0]
# what is shown
shorter = False  # draw the contexts shorter than `context` too
out_dir = "out-baby-gpt"  # where states.dot, states.svg and baby_gpt.html go [path]

MOST_STATES = 256  # more cannot be seen
COLORS = ("#2f6db3", "#d1495b", "#3a8f5c", "#b07c1f", "#7a5195", "#4c9f9f", "#8c564b", "#666666")


@dataclass
class Chain:
    """The model at one step, as a Markov chain: P(next token | state) of every state."""

    step: int
    loss: float
    probs: dict[str, list[float]]  # state -> a probability per symbol of the vocabulary


def states(symbols: str, length: int, shorter: bool = False) -> list[str]:
    """All contexts of `length` symbols; with `shorter`, those of 1, 2, ... symbols before them.

    >>> states("01", 2), len(states("01", 3, shorter=True))
    (['00', '01', '10', '11'], 14)
    """
    lengths = range(1, length + 1) if shorter else (length,)
    return ["".join(s) for n in lengths for s in itertools.product(symbols, repeat=n)]


def following(state: str, symbol: str, length: int) -> str:
    """The state after `symbol`: the context grows until it is full, then its oldest symbol goes."""
    return (state + symbol)[-length:]


def windows(text: str, tokenizer: CharTokenizer, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every window of the text as one batch: x (B, length) and, at the last position only, y."""
    if len(text) <= length:
        raise UserError(
            f"a sequence of {len(text)} symbols has no window of context {length} and a symbol "
            "after it: give a longer sequence or a smaller context"
        )
    ids = torch.tensor(tokenizer.encode(text))
    x = ids.unfold(0, length, 1)[:-1]  # (B, length)
    y = torch.full_like(x, -1)
    y[:, -1] = ids[length:]
    return x, y


@torch.no_grad()
def chain(model: GPT, tokenizer: CharTokenizer, length: int, step: int, loss: float) -> Chain:
    """Ask the model for the next token of every context, the shorter ones included."""
    probs = {}
    for state in states("".join(tokenizer.chars), length, shorter=True):
        logits, _ = model(torch.tensor([tokenizer.encode(state)]))  # (1, 1, V)
        probs[state] = torch.softmax(logits[0, -1], dim=-1).tolist()
    return Chain(step, loss, probs)


def train(c: Config, tokenizer: CharTokenizer) -> tuple[GPT, list[Chain]]:
    """Train on all windows at once; returns the model and the chain at every step."""
    x, y = windows(c.sequence, tokenizer, c.context)
    config = GPTConfig(
        block_size=c.context,
        vocab_size=tokenizer.vocab_size,
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        bias=False,
        norm_bias=True,
    )
    torch.manual_seed(c.seed)
    model = GPT(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay
    )
    chains = []
    for step in range(c.steps + 1):
        end_if_told()
        _, loss = model(x, y)
        chains.append(chain(model, tokenizer, c.context, step, loss.item()))
        if step < c.steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, chains


# ---- pictures ----


def dot(shown: list[Chain], symbols: str, length: int, shorter: bool) -> str:
    """The state diagrams of some steps side by side, in Graphviz's language."""
    lines = ["digraph {", 'graph [fontname="Helvetica" rankdir=TB nodesep=0.3 ranksep=0.45]']
    lines.append('node [fontname="Helvetica" shape=circle fixedsize=true width=0.62 fontsize=13]')
    lines.append('edge [fontname="Helvetica" fontsize=10 arrowsize=0.7]')
    for c in shown:
        lines.append(f"subgraph cluster_{c.step} {{")
        lines.append(f'label="step {c.step}, loss {c.loss:.3f}" color="#cccccc"')
        for state in states(symbols, length, shorter):
            lines.append(f"{quoted(c.step, state)} [label={json.dumps(state, ensure_ascii=False)}]")
            for k, p in enumerate(c.probs[state]):
                goal = following(state, symbols[k], length)
                label, color = (
                    json.dumps(f"{symbols[k]} {100 * p:.0f}%", ensure_ascii=False),
                    COLORS[k % len(COLORS)],
                )
                look = f'label={label} penwidth={0.3 + 5 * p:.2f} color="{color}"'
                look += f' fontcolor="{color}"'
                lines.append(f"{quoted(c.step, state)} -> {quoted(c.step, goal)} [{look}]")
        lines.append("}")
    return "\n".join([*lines, "}", ""])


def quoted(step: int, state: str) -> str:
    """The name of a state's node at a step."""
    return json.dumps(f"{step}:{state}", ensure_ascii=False)


def page(c: Config, chains: list[Chain], model: GPT) -> str:
    """page.html with the chains of all steps put into its script: one file, nothing else needed."""
    data = {
        "sequence": c.sequence,
        "symbols": c.vocabulary,
        "context": c.context,
        "parameters": model.num_params(non_embedding=False),
        "colors": COLORS,
        "states": list(chains[0].probs),
        "chains": [
            {
                "step": at.step,
                "loss": round(at.loss, 4),
                "probs": [[round(p, 4) for p in ps] for ps in at.probs.values()],
            }
            for at in chains
        ],
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return (HERE / "page.html").read_text(encoding="utf-8").replace("null /* data */", text)


def draw(c: Config, chains: list[Chain], model: GPT) -> None:
    """Write states.dot, the page, and with Graphviz's help states.svg."""
    folder = Path(c.out_dir)
    steps_shown = sorted({0, c.steps // 2, c.steps})
    source = dot([chains[s] for s in steps_shown], c.vocabulary, c.context, c.shorter)
    write_whole(folder / "states.dot", source)
    write_whole(folder / "baby_gpt.html", page(c, chains, model))
    print(f"\nwrote {folder / 'baby_gpt.html'}: open it in a browser")
    if shutil.which("dot") is None:
        print(f"no states.svg, because Graphviz (dot) is not installed; {folder / 'states.dot'} is")
        return
    files = [str(folder / "states.dot"), "-o", str(folder / "states.svg")]
    done = subprocess.run(["dot", "-Tsvg", *files], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"Graphviz failed: {done.stderr.strip()[:200]}")
    print(f"wrote {folder / 'states.svg'}")


# ---- tables ----


def transitions(at: Chain, symbols: str, length: int, shorter: bool) -> str:
    """The probabilities of one step as a table."""
    rows = [
        {"state": s, **{f"p{k}": p for k, p in enumerate(at.probs[s])}}
        for s in states(symbols, length, shorter)
    ]
    columns = [("state", "state", "")]
    columns += [(f"P({s})", f"p{k}", ".4f") for k, s in enumerate(symbols)]
    return f"step {at.step}, loss {at.loss:.4f}\n{table(rows, columns)}"


def state_spaces(length: int, symbols: str) -> str:
    """How large the chains of real models are: bits that name one of V^T contexts of T tokens."""
    models = [
        ("this one", length, len(symbols)),
        ("GPT-2", 1024, 50257),
        ("GPT-2, as the original notes have it", 2048, 50257),
        ("GPT-3", 2048, 50257),
        ("GPT-4, 8k", 8192, 100277),
        ("GPT-4, 32k", 32768, 100277),
    ]
    rows = []
    for name, T, V in models:
        bits = T * math.log2(V)
        exponent = T * math.log10(V)
        count = f"{V**T:,}" if exponent < 6 else f"10^{exponent:,.0f}"
        rows.append(
            {"name": name, "T": T, "V": V, "states": count, "bits": bits, "kB": bits / 8000}
        )
    columns = [("model", "name", ""), ("context", "T", ",d"), ("vocabulary", "V", ",d")]
    columns += [("states", "states", ""), ("bits of state", "bits", ",.0f"), ("kB", "kB", ",.1f")]
    return table(rows, columns)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    if len(c.vocabulary) < 2:
        raise UserError(f"vocabulary={c.vocabulary!r}: give at least two symbols, as in 01 or abc")
    if len(c.vocabulary) ** c.context > MOST_STATES:
        raise UserError(
            f"{len(c.vocabulary)} symbols and a context of {c.context} make "
            f"{len(c.vocabulary) ** c.context:,} states, more than the {MOST_STATES} that can be "
            "drawn"
        )
    check_writable(Path(c.out_dir) / "states.dot", "the diagram")
    try:
        model, chains = train(c, CharTokenizer(c.vocabulary))
    except ValueError as e:  # of GPTConfig
        raise UserError(e) from None
    print(f"{model.num_params(non_embedding=False):,} parameters\n")
    for step in sorted({0, c.steps}):
        print(transitions(chains[step], c.vocabulary, c.context, c.shorter) + "\n")
    print("The state of larger models:\n" + state_spaces(c.context, c.vocabulary))
    draw(c, chains, model)


if __name__ == "__main__":
    run(main)
