"""A Ctrl-C whose KeyboardInterrupt gets lost in a program's start ends it before its work begins.

The programs run in this process; the moment is that in which they read their settings.
"""

import importlib
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.every_program import PROGRAMS, WORK, start, words_for
from helpers.lost_signals import WAYS, handled_as_in, in_a_bare_except, in_a_callback

import configurator
from benchmarks.harness import in_turn
from benchmarks.processes import running
from bonsai.data.dataset import open_dataset
from bonsai.data.writer import Writer
from bonsai.engine import Engine, SamplingParams
from bonsai.models.seq2seq import Seq2Seq, Seq2SeqConfig
from bonsai.system.errors import end_by_interrupt
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer, CharTokenizer, bpe
from bonsai.training.forecast import tracked
from model import GPT, GPTConfig
from projects.adder import adder
from projects.baby_gpt import baby_gpt
from projects.common import loss_by_position, run_and_pass_on
from projects.digits import digits
from projects.translate import translate

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def started(place, workplace, monkeypatch, capfd):
    """Start a program in which Ctrl-C comes, and is lost, while it reads its settings: its exit
    status, and what it said on stdout and stderr."""
    real = configurator.configure

    def started(lose, program: str, *words: str):
        def configure(*args, **options):
            lose()
            return real(*args, **options)

        monkeypatch.setattr(configurator, "configure", configure)
        return start(monkeypatch, place, workplace, program, *words), *capfd.readouterr()

    threads = torch.get_num_threads()
    yield started
    torch.set_num_threads(threads)


@pytest.mark.parametrize("lose", WAYS)
@pytest.mark.parametrize("program, words, work", WORK, ids=[f"{w[0]}-{w[1][0]}" for w in WORK])
def test_the_work_does_not_begin(started, place, tmp_path, lose, program, words, work):
    if program != "serve.py":  # which would not end
        status, out, err = started(
            lambda: None, program, *words_for(words, place, tmp_path / "whole")
        )
        assert not status and re.search(work, out), out + err
    status, out, err = started(lose, program, *words_for(words, place, tmp_path / "made"))
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


def lost_in(monkeypatch, module, name: str) -> list:
    """From here on a Ctrl-C is lost at each call of a function of a module; grows with each."""
    calls, function = [], getattr(module, name)

    def losing(*args, **options):
        calls.append(name)
        in_a_bare_except()
        return function(*args, **options)

    monkeypatch.setattr(module, name, losing)
    return calls


def a_digit_network(monkeypatch, folder):
    x, y = np.zeros((40, 4)), np.zeros(40, int)
    c = SimpleNamespace(seed=1, hidden=2, epochs=3, batch_size=40, learning_rate=0.1)
    return lost_in(monkeypatch, digits, "accuracy"), lambda: digits.train(c, x, y, x, y)


def a_baby_gpt(monkeypatch, folder):
    c = SimpleNamespace(sequence="0110", context=2, n_layer=1, n_head=1, n_embd=8, seed=1)
    c.steps, c.learning_rate, c.weight_decay = 3, 0.1, 0.0
    calls = lost_in(monkeypatch, baby_gpt, "chain")
    return calls, lambda: baby_gpt.train(c, CharTokenizer("01"))


def sums_that_are_checked(monkeypatch, folder):
    class Model(torch.nn.Module):
        def forward(self, idx, targets):
            calls.append("a part")
            in_a_bare_except()
            return torch.zeros(*idx.shape, 10), None

    calls, rows = [], np.zeros((9000, 5), int)
    return calls, lambda: adder.right(Model(), rows, 3)


def losses_by_position(monkeypatch, folder):
    class Model(torch.nn.Module):
        def forward(self, idx, targets):
            calls.append("some windows")
            in_a_bare_except()
            return torch.zeros(*idx.shape, 257), None

    calls = []
    with Writer(folder / "data", ByteTokenizer()) as writer:
        for split in ("train", "val"):
            writer.add(split, [1] * 64 * 130)
        writer.finish()
    split = open_dataset(str(folder / "data")).split("val")
    return calls, lambda: loss_by_position(Model(), split, 64, 128)


def translations(monkeypatch, folder):
    config = Seq2SeqConfig(vocab_size=300, n_layer=1, n_head=1, n_embd=16, hidden=16)
    c, coder = SimpleNamespace(beams=1, alpha=0.6), ByteTokenizer()
    calls, runtime = lost_in(monkeypatch, translate, "beam_search"), setup("cpu", "float32", False)
    texts = ["a"] * 40
    return calls, lambda: translate.translate(c, Seq2Seq(config), coder, texts, runtime)


def a_data_set(monkeypatch, folder):
    calls = []

    def prepare():
        with Writer(folder, ByteTokenizer()) as writer:
            for split in ("train", "val"):
                writer.add(split, [1])
                calls.append(split)
                in_a_bare_except()

    return calls, prepare


def merges_that_are_learnt(monkeypatch, folder):
    def progress(count: int) -> None:
        calls.append(count)
        in_a_bare_except()

    calls = []
    return calls, lambda: bpe.learn_merges({b"abab": 9, b"abcd": 5}, 9, progress)


def texts_of_a_vocabulary(monkeypatch, folder):
    def texts():
        for text in "abc":
            calls.append(text)
            in_a_bare_except()
            yield text

    calls = []
    return calls, lambda: bpe.count_chunks(texts(), None)


def texts_of_a_vocabulary_in_rust(monkeypatch, folder):
    pytest.importorskip("rustbpe")
    calls = lost_in(monkeypatch, bpe, "well_formed")
    return calls, lambda: bpe.rust_tokens("abc", 9, bpe.GPT4)


LOOPS = [a_digit_network, a_baby_gpt, sums_that_are_checked, losses_by_position, translations]
LOOPS += [a_data_set, merges_that_are_learnt, texts_of_a_vocabulary, texts_of_a_vocabulary_in_rust]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_ends_at_its_next_turn(monkeypatch, tmp_path, loop):
    calls, run = loop(monkeypatch, tmp_path)
    with handled_as_in(end_by_interrupt), pytest.raises(KeyboardInterrupt):
        run()
    assert len(calls) == 1
