"""benchmarks/harness.py: turns, results that go on where they were cut, checkouts of nanoGPT."""

import importlib
import json
import sys

import pytest
import torch
from helpers.peer import make_peer
from helpers.programs import ROOT

from benchmarks.harness import Peer, Results, in_turn, known, spread, table
from bonsai.system.errors import UserError, run
from configurator import configure

CPU = torch.device("cpu")


def test_the_first_place_is_no_advantage():
    assert list(in_turn("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_a_spread_is_the_range_over_the_median():
    assert spread([4.0, 2.0, 3.0]) == {"median": 3, "low": 2, "high": 4, "n": 3, "spread": 2 / 3}


def test_a_column_may_lead_into_a_row():
    rows = [{"ours": {"rate": {"median": 2.0}}, "n": 3}, {"n": 4}]
    text = table(rows, (("rate", "ours.rate.median", ".1f"), ("n", "n", "d")))
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["|", "2.0", "|", "3", "|"],
        ["|", "n/a", "|", "4", "|"],
    ]


def test_what_is_no_choice_is_named():
    known("sizes", ["a"], ("a", "b"))
    with pytest.raises(UserError, match="sizes=c is not one of a, b"):
        known("sizes", ["a", "c"], ("a", "b"))


def test_results_go_on_where_they_were_cut(tmp_path, capsys):
    def start(**options) -> Results:
        return Results("speed", tmp_path, CPU, same=(), **{"peer": "1", **options})

    def forbidden() -> dict:
        raise AssertionError("measured again")

    first = start()
    row = first.measure({"size": "toy"}, lambda: {"rate": 5.0})
    assert not (tmp_path / "speed.txt").exists()  # cut short here
    again = start()
    assert again.measure({"size": "toy"}, forbidden) == row
    again.measure({"size": "char"}, lambda: {"rate": 6.0})
    again.finish("a table", steps=3)
    assert "toy: measured before" in capsys.readouterr().out
    assert (tmp_path / "speed.txt").read_text() == "a table\n"
    written = json.loads((tmp_path / "speed.json").read_text())
    assert [r["rate"] for r in written["rows"]] == [5.0, 6.0] and written["steps"] == 3
    for name in ("command", "commit", "versions", "hardware", "peer"):
        assert written[name] and written["rows"][0]["about"][name]
    # another peer, or force: from the beginning
    assert start(peer="2").rows == start(again=True).rows == [] != start().rows


def test_what_is_measured_together_is_written_together(tmp_path, capsys):
    def both() -> list[dict]:
        assert not (tmp_path / "speed.json").exists()
        return [{"way": "a"}, {"way": "b"}]

    for _ in range(2):
        rows = Results("speed", tmp_path, CPU).measure_together({"size": "toy"}, both)
        assert [(r["size"], r["way"]) for r in rows] == [("toy", "a"), ("toy", "b")]
    assert "toy: measured before" in capsys.readouterr().out


def test_no_benchmark_begins_anew_where_it_was_cut():
    """As Results does with again=True, which is for what is asked for by --force."""
    programs = [*(ROOT / "benchmarks").glob("*.py")]
    assert programs and not [p for p in programs if "again=True" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("other", ["commit", "versions", "hardware", "peer"])
def test_rows_of_another_commit_or_machine_are_said_and_kept(tmp_path, capsys, other):
    def start() -> Results:
        return Results("speed", tmp_path, CPU, peer="1")

    for size in ("toy", "char"):
        start().add({"size": size})
    path = tmp_path / "speed.json"
    state = json.loads(path.read_text())
    state["rows"][0]["about"][other] = "another"
    path.write_text(json.dumps(state))
    capsys.readouterr()
    results = start()
    assert [row["size"] for row in results.rows] == ["char"]
    line = f"1 of 2 rows in {path} are of another {other}: not used"
    assert capsys.readouterr().out.splitlines()[-1] == line
    results.add({"size": "toy"})
    # nothing is lost where one goes to and fro
    state["rows"][0]["about"][other] = "one more"
    path.write_text(json.dumps(state))
    assert len(start().rows) == len(start().rows) == 1
    kept = json.loads((tmp_path / "speed.before.json").read_text())["rows"]
    assert [row["about"][other] for row in kept] == ["another", "one more"]


def test_a_row_of_another_commit_says_so_where_it_is_taken(tmp_path, capsys):
    Results("speed", tmp_path, CPU).add({"size": "toy"})
    path = tmp_path / "speed.json"
    state = json.loads(path.read_text())
    state["rows"][0]["about"]["commit"] = "abc1234"
    path.write_text(json.dumps(state))
    results = Results("speed", tmp_path, CPU, same=("hardware",))
    results.measure({"size": "toy"}, dict)
    assert capsys.readouterr().out.splitlines()[-1].endswith(", by commit abc1234")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": 3}', '{"rows": [3]}'])
def test_what_is_no_file_of_results_is_left_alone(tmp_path, text):
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(UserError, match=r"speed\.json is not"):
        Results("speed", tmp_path, CPU)
    assert (tmp_path / "speed.json").read_text() == text


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write the results to"):
            Results("speed", folder, CPU)


def test_a_table_is_there_from_the_first_row_on(tmp_path):
    results = Results("speed", tmp_path, CPU, (("size", "size", ""), ("rate", "rate.low", "d")))
    results.put([{"size": "a", "rate": {"low": 1}}, {"size": "b"}])
    results.put([{"size": "b", "rate": {"low": 2}}])  # in their place
    text = "| size | rate |\n| :--- | ---: |\n| b    |    2 |\n"
    assert (tmp_path / "speed.txt").read_text() == text
    assert [r["size"] for r in json.loads((tmp_path / "speed.json").read_text())["rows"]] == ["b"]
    results.add({"size": "c"})
    assert (tmp_path / "speed.txt").read_text() == text + "| c    |  n/a |\n"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results("speed", "", CPU)
    results.add({"rate": 1.0})
    results.finish("a table")
    assert not list(tmp_path.iterdir())


# setting that is wrong -> what is said of it, of every benchmark; nothing is measured before
WRONG = [
    ("checkouts", "", "before= has no train.py: give the folder of another checkout"),
    ("checkouts", "--before=nowhere", "before=nowhere has no train.py"),
    ("train", "--peer=nowhere", "peer=nowhere has no model.py"),
    ("train", "--out=file", "cannot write the results to"),
    ("train", "--sizes=huge", "sizes=huge is not one of"),
    ("train", "--modes=fast", "modes=fast is not one of eager, compiled"),
    ("decode", "--peer=nowhere", "peer=nowhere has no model.py"),
    ("decode", "--sizes=toy --out=file", "cannot write the results to"),
    ("decode", "--sizes=huge", "sizes=huge is not one of 124M, char, toy"),
    ("decode", "--kinds=fp8", "kinds=fp8 is not one of"),
    ("decode", "--out_dir=nowhere", "no checkpoint in nowhere"),
    ("decode", "--out_dir=nowhere --kinds=int8", "--kinds is without effect with --out_dir"),
    ("decode", "--most=9", "--most is without effect without --out_dir"),
    ("update", "--out=file", "cannot write the results to"),
    ("update", "--sizes=huge", "sizes=huge is not one of toy, fast_toy, char"),
    ("windows", "--out=file", "cannot write the results to"),
    ("windows", "--patterns=X", "of the letters D and L"),
    ("windows", "--lengths=0", "lengths=0 must be numbers"),
    ("sample", "--peer=nowhere", "peer=nowhere has no model.py"),
    ("sample", "--out=file", "cannot write the results to"),
    ("gpu", "", "no stage given"),
    ("gpu", "--stages=none", "unknown stage none"),
    ("gpu", "--stages=train --peer=nowhere", "nowhere has no model.py"),
    ("gpu", "--stages=train --out=file --toy", "cannot write into the folder"),
    ("race_gpu", "--dataset=nosuch", "no data set nosuch"),
    ("race_gpu", "--peer=here --batches=24", "batches=24 must be rows by micro-batches"),
    ("race_gpu", "--peer=here --shipped=0x4", "shipped=0x4 must be rows by micro-batches"),
    ("race_gpu", "--ours=--compile", "ours: --compile is not --key=value"),
    ("race_gpu", "--ours=--batch_size=a", "ours: --batch_size=a must be a whole number"),
    ("race_gpu", "--peer=here --theirs=dropout=0", "theirs: dropout=0 is not --key=value"),
    ("race", "--race=nosuch", "race=nosuch is not one of"),
    ("race", "--dataset=nosuch", "no data set nosuch"),
    ("race", "--sweep=True", "--sweep is without effect without --peer"),
    ("race", "--race=recipe --sweep=True --peer=here", "--sweep is without effect in the race"),
    ("race", "--only=norm", "--only is without effect in the race cpu"),
    ("race", "--ours=--max_iters=a", "ours: --max_iters=a must be a whole number"),
    ("bytes", "", "choose one of --quick and --full"),
    ("bytes", "--quick --dataset=nosuch", "no data set nosuch"),
    ("bytes", "--quick --arms=none", "arms=none is not one of"),
    ("bytes", "--part=generation --out=file", "cannot write the results to"),
    ("serve", "--out_dir=nowhere", "no checkpoint in nowhere"),
    ("tokenizer", "--out=file", "cannot write the results to"),
    ("tokenizer", "--vocab_size=9", "vocab_size=9 must be at least 256"),
    ("data", "--input=nowhere.txt", "nowhere.txt"),
    ("data", "--input=nowhere.txt --out=file", "cannot write the results to"),
]
NAMES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "configure(" in p.read_text())


@pytest.mark.parametrize("name, words, said", WRONG, ids=lambda v: v[:50])
def test_a_mistake_is_one_line_before_anything_is_measured(
    tmp_path, monkeypatch, capsys, name, words, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words.split()])
    (tmp_path / "file").touch()
    module = importlib.import_module(f"benchmarks.{name}")
    for call in ("launch", "seconds_of", "training"):  # what would take time
        monkeypatch.delattr(module, call, raising=False)
    with pytest.raises(SystemExit) as e:
        run(module.main)
    err = capsys.readouterr().err
    assert e.value.code in (1, 2) and err.startswith("error: ") and said in err, err
    assert len(err.splitlines()) == 1


def test_the_table_has_every_benchmark():
    assert {name for name, _, _ in WRONG} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_setting_is_one_line(monkeypatch, capsys, name):
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--no_such=1"])
    with pytest.raises(SystemExit) as e:
        run(lambda: configure(vars(module).copy()))
    err = capsys.readouterr().err
    assert e.value.code == 2 and len(err.splitlines()) == 1 and "no_such" in err, err


def test_a_peer_is_a_folder_with_its_model(tmp_path, capsys):
    peer = Peer(make_peer(tmp_path / "peer"))
    fields = dict(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=5)
    assert peer.model(fields).num_params() > 0 and peer.commit
    peer.copy(tmp_path)
    assert (tmp_path / "train.py").exists() and (tmp_path / "config").is_dir()
    with pytest.raises(UserError, match=r"nowhere has no model\.py: give the folder of a nanoGPT"):
        Peer(tmp_path / "nowhere")
