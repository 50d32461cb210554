"""bonsai/evaluation/questions.py: what a run answers at its evaluations; also in train.py."""

import json
import signal
from shutil import copytree

import pytest
from helpers.errors import one_line
from helpers.evaluated import runtime, tiny, write_bundle, write_questions
from helpers.programs import (
    TINY,
    assert_one_line_error,
    metrics,
    run_as_several,
    run_program,
    train,
)
from helpers.tiny_data import CHARS

import train as train_py
from bonsai.evaluation import questions as asked
from bonsai.evaluation.choices import multiple_choice
from bonsai.evaluation.core import core, read_bundle
from bonsai.evaluation.questions import OF_CHOICES, Questions, read_all
from bonsai.system.errors import UserError
from bonsai.tokenizers import CharTokenizer
from model import GPTConfig

STATE = {"type": "char", "chars": list(CHARS)}
FEW = {"type": "char", "chars": list("ab")}
SHAPE = tiny().config
NAMES = {*OF_CHOICES, "core"}


@pytest.fixture(scope="module")
def files(workplace):
    """Seven questions, an odd number for two processes to share, and a bundle of one task."""
    write_questions(workplace / "seven.jsonl", 7)
    folder = write_bundle(workplace / "one_task", 9, shots=1)
    return str(workplace / "seven.jsonl"), str(folder)


def test_scores_are_those_of_multiple_choice_and_core(files):
    choices, bundle = files
    model, coder, labels = tiny(), CharTokenizer(CHARS), []
    everything = read_all(choices, bundle, 0, STATE, SHAPE)
    got = everything.scores(model, runtime(), 5, lambda label: labels.append(label) or iter)
    shares = multiple_choice(model, coder, everything.choices, runtime(), 5)
    tasks = core(model, coder, everything.tasks, runtime(), 5)
    assert got == {name: shares[name] for name in OF_CHOICES} | {"core": tasks[-1]["centered"]}
    assert labels == ["the questions", "ab (1 of 1)"] and model.training
    assert set(Questions(everything.choices, [], coder).scores(model, runtime(), 5)) < NAMES
    assert set(Questions([], everything.tasks, coder).scores(model, runtime(), 5)) == {"core"}
    assert Questions([], [], None).scores(model, runtime(), 5) == {}


def test_some_of_the_questions_are_spread_evenly_over_the_file(files):
    choices, bundle = files
    for most, places in ((0, range(7)), (3, (0, 2, 4)), (7, range(7)), (90, range(7))):
        some = read_all(choices, bundle, most, STATE, SHAPE)
        assert [int(q.where.rpartition(":")[2]) - 1 for q in some.choices] == [*places]
        assert len(some.tasks[0].items) == min(most or 9, 9)
    assert some.tasks[0].items == read_bundle(asked.resolve_path(bundle))[0].items


def test_no_tokenizer_is_made_where_nothing_is_asked(monkeypatch):
    """GPT-2's would be downloaded."""
    monkeypatch.setattr(asked, "tokenizer_in_training", None)
    assert read_all("", "", 0, None, GPTConfig()) == Questions([], [], None)


WRONG = {
    "no file": (dict(choices="none.jsonl"), "none.jsonl does not exist: --choices= leaves it out"),
    "no bundle": (dict(bundle="none"), "none does not exist: --core= leaves it out"),
    "a folder without tasks": (dict(bundle="."), "core.yaml"),
    "no text": (dict(choices="CHOICES", tokenizer=None), "numbers that are no text"),
    "no text for CORE": (dict(bundle="BUNDLE", tokenizer=None), "numbers that are no text"),
    "another alphabet": (dict(choices="CHOICES", tokenizer=FEW), "seven.jsonl:1: "),
    "another alphabet for CORE": (dict(bundle="BUNDLE", tokenizer=FEW), "the task ab: character"),
    "a wrong answer of another alphabet": (dict(bundle="OTHER"), "the task ab: character '\u00e9'"),
    "a short context": (dict(choices="CHOICES", config=GPTConfig(block_size=2)), "holds 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_asked_is_one_line(case, files, tmp_path):
    given, hint = WRONG[case]
    paths = {"CHOICES": files[0], "BUNDLE": files[1], "OTHER": str(tmp_path)}
    copytree(files[1], tmp_path, dirs_exist_ok=True)
    item = {"query": "ab", "choices": ["\u00e9", "a"], "gold": 1}  # this task's right one is known
    (tmp_path / "eval_data" / "q.jsonl").write_text(json.dumps(item))
    given = {k: paths.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(UserError) as e:
        read_all(**dict(choices="", bundle="", most=0, tokenizer=STATE, config=SHAPE) | given)
    assert hint in one_line(e)


# ---- in train.py ----


def test_a_run_scores_as_eval_py_does_also_with_two_processes(files, workplace, tmp_path):
    options = [f"--choices={files[0]}", f"--core={files[1]}", "--eval_interval=20"]
    options += ["--dtype=float32", "--dropout=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    done = train(workplace, one, *options)
    assert done.rc == 0, done
    last = [row for row in metrics(one) if "val_loss" in row][-1]
    assert f"core {last['core']:.4f}" in done.stdout
    program = [f"--out_dir={one}", f"--choices={files[0]}", f"--core={files[1]}", "--json=-"]
    done = run_program([*program, "--device=cpu"], workplace, program="eval.py")
    results = json.loads(done.stdout.splitlines()[-1])
    want = {**results["choices"][0], "core": results["core"][-1]["centered"]}
    assert {name: last[name] for name in NAMES} == {name: want[name] for name in NAMES}
    # of seven questions with four endings one process has 16, four batches, the other 12
    shared = [*TINY, *options, "--dataset=meta", f"--out_dir={two}"]
    done = run_as_several(shared, workplace)
    assert done.rc == 0, done
    again = [row for row in metrics(two) if "val_loss" in row][-1]
    assert {name: again[name] for name in NAMES} == {name: last[name] for name in NAMES}


def test_a_signal_among_the_questions_ends_the_evaluation(files, workplace, out, monkeypatch):
    calls, scores = [], Questions.scores

    def told_to_stop(self, model, runtime, batch_size, tracker):
        signal.raise_signal(signal.SIGINT)
        found = scores(self, model, runtime, batch_size, tracker)
        calls.append(found)
        return found

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(Questions, "scores", told_to_stop)
    settings = dict(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=4, dropout=0.0)
    settings |= dict(device="cpu", dtype="float32", max_iters=5, eval_iters=2, dataset="meta")
    status = train_py.main(**settings, out_dir=str(out), choices=files[0])
    assert status == 130 and len(calls) == 1 and not (out / "last.pt").exists()


def test_what_cannot_be_asked_ends_a_run_before_its_first_step(workplace, out):
    done = train(workplace, out, "--choices=none.jsonl")
    assert_one_line_error(done, "none.jsonl does not exist")
    done = train(workplace, out, "--eval_questions=3")
    assert_one_line_error(done, "--eval_questions is without effect without --choices or --core")


def test_a_run_that_goes_on_may_leave_its_questions_out(files, workplace, out):
    """--eval_questions comes from the checkpoint then, and has nothing to say."""
    few = ["--choices=" + files[0], "--eval_questions=2", "--eval_interval=5"]
    assert train(workplace, out, *few, "--max_iters=5").rc == 0
    done = train(workplace, out, "--init_from=resume", "--choices=", "--max_iters=8")
    assert done.rc == 0, done
    rows = [row for row in metrics(out) if "val_loss" in row]
    assert ["accuracy" in row for row in rows] == [True, True, False]
