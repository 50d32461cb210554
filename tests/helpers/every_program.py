"""Programs with the words of a small piece of work for each, to be run in this process."""

import io
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.lost_signals import handled_as_in
from helpers.made_model import save
from helpers.programs import ROOT, TINY

from bonsai.system.errors import end_at_once
from bonsai.tokenizers import ByteTokenizer
from model import GPT, GPTConfig

PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "data/*/prepare.py", "projects/*/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if "configure(" in (text := path.read_text(encoding="utf-8")) and "    run(" in text
)
MODEL = "--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --device=cpu"


# The words for each program, and what it says of its work.
WORK = [
    ("train.py", [*TINY, "--dataset=meta", "--out_dir=OUT"], r"iter \d|step 0"),
    ("sample.py", ["--num_samples=1", "--max_new_tokens=9", "--device=cpu"], "."),
    ("sample.py", ["--num_samples=2", "--max_new_tokens=9", "--device=cpu"], "."),
    ("sample.py", ["--interactive", "--device=cpu"], "."),
    ("sample.py", ["--prompts=jobs.jsonl", "--device=cpu"], "."),
    ("eval.py", ["--dataset=meta", "--init_from=RUN", "--other_tokenizer", "--device=cpu"], "loss"),
    ("serve.py", ["--device=cpu", "--port=0", "--threads=1"], "stopped"),
    ("export.py", ["--to=safetensors", "--out=OUT.safetensors"], "wrote"),
    ("export.py", ["--to=hf", "--out=OUT"], "wrote"),
    ("bench.py", [*MODEL.split(), "--steps=2", "--real_data=False", "--vocab_size=65"], "loss"),
    ("train_tokenizer.py", ["--input=text.txt", "--vocab_size=270", "--out=OUT.json"], "wrote"),
    ("data/custom/prepare.py", ["--input=text.txt", "--out=OUT", "--tokenizer=byte"], "tokens"),
    ("data/shakespeare_char/prepare.py", ["--input=text.txt", "--out=OUT"], "tokens"),
    ("benchmarks/windows.py", ["--lengths=16", "--n_layer=1", "--device=cpu", "--out=OUT"], "ms"),
]


def make_place(folder: Path) -> None:
    """A run of a byte model and a text, for programs that run in this folder."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=16, vocab_size=257))
    with torch.no_grad():
        model.lm_head.weight[256] = 0.0  # of 257 it is never the likeliest: no text ends
    save(folder / "out", model, ByteTokenizer())
    (folder / "jobs.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "text.txt").write_text("so tall a tree, it sees the sea\n" * 100)


def words_for(words: list[str], place: Path, out: Path) -> list[str]:
    """Those of a program, with OUT for a new path and RUN for the run of `place`."""
    names = {"OUT": str(out), "RUN": str(place / "out")}
    return [re.sub("OUT|RUN", lambda found: names[found[0]], word) for word in words]


def start(monkeypatch, place: Path, workplace: Path, program: str, *words: str) -> int | None:
    """Run a program in one of the two folders; its exit status."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / program), *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO("So\nSo\n"))
    monkeypatch.chdir(workplace if "--dataset=meta" in words else place)
    with handled_as_in(end_at_once), pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return e.value.code
