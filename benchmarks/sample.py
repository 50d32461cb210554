"""Seconds of sample.py with its defaults, start included, beside nanoGPT's.

    python benchmarks/sample.py --peer=../nanoGPT

Ten texts of 500 tokens by a GPT-2 (124M) with random weights. Both programs read the same
checkpoint and run in turn, each in its own process. Tokens are characters, so no vocabulary is
needed.
"""

import pickle
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Peer, Results, in_turn, spread
from benchmarks.track import launch
from bonsai import ROOT
from bonsai.models.table import build_model
from bonsai.system.devices import pick_device
from bonsai.system.errors import run
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout; empty: only ours [path]
repeats = 3  # the table has their median [>= 1]
options = ""  # for both programs, as --key=value words
n_layer = 12  # [>= 1]
n_head = 12  # [>= 1]
n_embd = 768  # [>= 1]
block_size = 1024  # [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
out = ""  # folder for sample.json and .txt; rows in it are not measured again [path]
force = False  # measure them again
# -----------------------------------------------------------------------------

COLUMNS = (
    ("project", "name", ""), ("seconds", "seconds.median", ".1f"), ("low", "seconds.low", ".1f"),
    ("high", "seconds.high", ".1f"), ("n", "seconds.n", "d"),
)  # fmt: skip


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    where, _ = pick_device(c.device)
    checkout = Peer(resolve_path(c.peer)) if c.peer else None
    shape = {name: c[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    shape |= {"vocab_size": 50257, "bias": False, "dropout": 0.0}
    about = {"options": c.options, "shape": shape}
    about["peer_commit"] = checkout.commit if checkout else None
    results = Results("sample", c.out, where, COLUMNS, again=c.force, **about)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        programs = {"sample.py": ROOT / "sample.py"}
        if checkout:
            checkout.copy(folder)
            shutil.copyfile(checkout.file("sample.py"), folder / "sample.py")
            programs["nanoGPT's sample.py"] = folder / "sample.py"
        make_run(folder, shape)
        words = ["--out_dir=.", f"--device={where.type}", *c.options.split()]
        seconds = {name: [] for name in programs}
        for row in results.rows:  # from a call that was interrupted
            seconds[row["name"]] = row["each"]
        for repeat, name in in_turn(programs, c.repeats):
            if repeat < len(seconds[name]):
                continue
            log = (results.folder or folder) / "sample.log"
            took = launch([str(programs[name]), *words], folder, log)
            seconds[name].append(took)
            print(f"{name}: {took:.1f} s", flush=True)
            results.put(
                {"name": n, "seconds": spread(s), "each": s} for n, s in seconds.items() if s
            )
    results.finish()


def make_run(folder: Path, shape: dict) -> None:
    """Write a checkpoint in nanoGPT's form, and its data's vocabulary with a character per id."""
    torch.manual_seed(0)
    state = {"model": build_model("gpt", shape).state_dict(), "model_args": shape}
    state |= {"iter_num": 0, "best_val_loss": 1e9, "config": {"dataset": "made"}}
    torch.save(state, folder / "ckpt.pt")
    letters = ["\n", *(chr(0x20000 + i) for i in range(1, shape["vocab_size"]))]
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters))}
    meta["stoi"] = {letter: i for i, letter in enumerate(letters)}
    (folder / "data" / "made").mkdir(parents=True)
    with open(folder / "data" / "made" / "meta.pkl", "wb") as f:
        pickle.dump(meta, f)


if __name__ == "__main__":
    run(main)
