"""A Ctrl-C whose KeyboardInterrupt gets lost in a program's start ends it before its work begins.

The programs run in this process; the moment is that in which they read their settings.
"""

import importlib
import io
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.lost_signals import WAYS, handled_as_in, in_a_bare_except, in_a_callback
from helpers.made_model import save
from helpers.programs import ROOT, TINY

import configurator
from benchmarks.harness import in_turn
from benchmarks.processes import running
from bonsai.engine import Engine, SamplingParams
from bonsai.system.errors import end_at_once, end_by_interrupt
from bonsai.tokenizers import ByteTokenizer
from bonsai.training.forecast import tracked
from model import GPT, GPTConfig
from projects.common import run_and_pass_on

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "data/*/prepare.py", "projects/*/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if "configure(" in (text := path.read_text(encoding="utf-8")) and "    run(" in text
)
MODEL = "--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --device=cpu"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run of a byte model and a text."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=16, vocab_size=257))
    with torch.no_grad():
        model.lm_head.weight[256] = 0.0  # of 257 it is never the likeliest: no text ends
    save(folder / "out", model, ByteTokenizer())
    (folder / "jobs.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "text.txt").write_text("so tall a tree, it sees the sea\n" * 100)
    return folder


@pytest.fixture
def started(place, workplace, monkeypatch, capfd):
    """Start a program in which Ctrl-C comes, and is lost, while it reads its settings: its exit
    status, and what it said on stdout and stderr."""
    real = configurator.configure

    def start(lose, program: str, *words: str):
        def configure(*args, **options):
            lose()
            return real(*args, **options)

        monkeypatch.setattr(configurator, "configure", configure)
        monkeypatch.setattr(sys, "argv", [str(ROOT / program), *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "stdin", io.StringIO("So\nSo\n"))
        monkeypatch.chdir(workplace if "--dataset=meta" in words else place)
        with handled_as_in(end_at_once), pytest.raises(SystemExit) as e:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        return e.value.code, *capfd.readouterr()

    threads = torch.get_num_threads()
    yield start
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("lose", WAYS)
@pytest.mark.parametrize("program, words, work", WORK, ids=[f"{w[0]}-{w[1][0]}" for w in WORK])
def test_the_work_does_not_begin(started, place, tmp_path, lose, program, words, work):
    def words_for(out: str) -> list[str]:
        names = {"OUT": str(tmp_path / out), "RUN": str(place / "out")}
        return [re.sub("OUT|RUN", lambda found: names[found[0]], word) for word in words]

    if program != "serve.py":  # which would not end
        status, out, err = started(lambda: None, program, *words_for("whole"))
        assert not status and re.search(work, out), out + err
    status, out, err = started(lose, program, *words_for("made"))
    assert status == 130 and err.endswith("\nerror: interrupted\n"), out + err
    assert err.count("error") == 1 and "Traceback" not in err and "ignored" not in err
    assert not re.search(work, out), out
    assert ("serving on" in out) == (program == "serve.py")
    made = {path.name for path in tmp_path.rglob("made*/*")} | set(tmp_path.glob("made?*"))
    assert made <= {"metrics.jsonl", "log.txt", "config.json"}  # of a run that is about to begin


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_ends_by_it_at_the_latest_where_it_ends(started, program):
    """Here at the end of its help; after a mistake of its user it says that alone."""
    assert len(PROGRAMS) > 25
    status, out, err = started(in_a_callback, program, "--help")
    assert status == 130 and err == "\nerror: interrupted\n" and out
    status, _, err = started(in_a_bare_except, program, "--no_such=1")
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_of_what_is_typed_it_ends_one_continuation(started, monkeypatch):
    generation = importlib.import_module("bonsai.engine.generate")
    prefill, decode, tokens = generation.prefill, generation.decode_one_token, []

    def first(*args):
        tokens.append(1)
        return prefill(*args)

    def another(*args):
        tokens[-1] += 1
        if len(tokens) == 1:
            in_a_bare_except()
        return decode(*args)

    monkeypatch.setattr(generation, "prefill", first)
    monkeypatch.setattr(generation, "decode_one_token", another)
    options = ("--interactive", "--max_new_tokens=9", "--top_k=1", "--device=cpu")
    status, _, err = started(lambda: None, "sample.py", *options)
    assert not status and tokens == [2, 9] and "interrupted" not in err


# ---- between the parts of the work ----


def test_the_next_part_does_not_begin(capfd):
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=16, vocab_size=257))
    engine, begun = Engine(model, 2), []
    engine.submit([1, 2], SamplingParams(9))

    def turns():
        for _, name in in_turn(["a", "b"], 2):
            begun.append(name)
            in_a_bare_except()

    def batches():
        for on in (True, False):
            for batch in tracked(range(3), "evaluating", print, on):
                begun.append(batch)
                in_a_bare_except()

    def tokens():
        engine.step()
        begun.append("token")
        in_a_bare_except()
        engine.step()

    def others():
        begun.append("the first program")
        in_a_bare_except()
        with running([sys.executable, "-c", "print('begun')"]):
            begun.append("the second one")

    def passed_on():
        begun.append("the first program")
        in_a_bare_except()
        begun.append(run_and_pass_on([sys.executable, "-c", "print('begun')"]))

    for part in (turns, batches, tokens, others, passed_on):
        begun.clear()
        with handled_as_in(end_by_interrupt), pytest.raises(KeyboardInterrupt):
            part()
        assert len(begun) == 1, (part, begun)
    assert "begun" not in capfd.readouterr().out
