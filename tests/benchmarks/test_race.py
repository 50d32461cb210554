"""benchmarks/race.py, track.py and clock.py, at toy size and with a stand-in for the peer."""

import itertools
import json
import re
import sys
from types import SimpleNamespace

import pytest
from helpers.peer import make_peer
from helpers.programs import ROOT, run_command
from helpers.settings import settings

from benchmarks import race, track
from bonsai.system.errors import UserError

PROGRAM = """
import torch
print(torch.initial_seed(), flush=True)
torch.manual_seed(1337)
print(torch.initial_seed(), flush=True)
w = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([w], lr=0.1)
for _ in range(4):
    w.grad = torch.ones(3)
    optimizer.step()
"""


def test_the_clock_counts_steps_from_the_optimizer_on(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(ROOT / "benchmarks" / "clock.py")]
    done = run_command([*command, "times.json", "3", "5", "program.py"], tmp_path)
    assert done.rc == 0, done
    assert done.stdout.split()[1] == "1342"
    times = json.loads((tmp_path / "times.json").read_text())
    assert len(times) == 3 and 0 < times[0] < times[1] < times[2]


# ---- races, their programs run within this process ----

TINY = "--block_size=16 --n_layer=1 --n_embd=16 --n_head=1 --batch_size=4 --dtype=float32"
TINY += " --device=cpu"


def test_a_race_at_toy_size(place, monkeypatch, capsys):
    """Ours and a stand-in for the peer, swept; run again it repeats nothing."""
    options = dict(peer=str(make_peer(place / "peer")), steps=3, seeds=2, sweep=True, ours=TINY)
    options |= dict(block_size=16, plot="race.png")
    race.main(**options)
    said = capsys.readouterr().out
    assert "nanoGPT, tuned" in said and "times the seconds" in said and "reached" in said
    assert (place / "race.png").stat().st_size > 10_000
    rows = json.loads((place / "out-race" / "cpu.json").read_text())["rows"]
    names = [r["name"] for r in rows]
    assert names.count("ours") == names.count("nanoGPT") == names.count("nanoGPT, tuned") == 2
    assert len(rows) == 6 + len(race.RACES["cpu"].rates)
    for r in rows:
        assert len(r["ends"]) == len(r["curve"]) == r["steps"] and r["seconds"] > 0
    ours = [r for r in rows if r["name"] == "ours"]
    assert ours[0]["tokens"] == 3 * 4 * 16 and ours[0]["loss"] != ours[1]["loss"]

    def forbidden(*args):
        raise AssertionError("run again")

    monkeypatch.setattr(track, "launch", forbidden)
    race.main(**options)
    assert said[said.index("| run ") :] == (place / "out-race" / "cpu.txt").read_text()
    # what is cut short by the clock goes on later, where something is left to do
    with pytest.raises(UserError, match="minutes are over: repeat the command to go on"):
        race.main(**{**options, "seeds": 3, "minutes": 1e-9})


def test_ablations_at_toy_size(place):
    """Two rows; the changed one has another loss than the recipe."""
    race.main(race="ablation", only="head", steps=2, seeds=1)
    found = json.loads((place / "out-race" / "ablation.json").read_text())["summary"]
    assert [r["name"] for r in found] == ["the recipe", "head: tied to the embedding"]
    assert found[0]["difference"] == 0 != found[1]["difference"]
    with pytest.raises(
        UserError, match="only=nothing is the beginning of none of: the recipe, bigram"
    ):
        race.main(race="ablation", only="nothing")


def test_each_ablation_of_the_recipe_itself_has_equal_tokens():
    """A batch ramp, which begins with fewer, takes more steps."""
    c = SimpleNamespace(race="ablation_bpe", steps=0, only="values, batch")
    recipe, ramp = race.arms_of(c, race.RACES["ablation_bpe"], None)
    assert (recipe.steps, ramp.steps) == (400, 500)
    for arm in (recipe, ramp):
        assert arm.options.split()[0].endswith("config/fast_gpt2.py")
        assert f"--lr_decay_iters={arm.steps} " in arm.options
    assert 80 * 4 + 80 * 8 + 340 * 16 == 400 * 16  # rows


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_recipe_is_timed_as_whole_programs(place, monkeypatch, capsys, real):
    """From start to end; the checkpoint that each keeps is evaluated."""
    if real:
        monkeypatch.undo()
        monkeypatch.chdir(place)
    peer = make_peer(place / "peer")
    race.main(race="recipe", peer=str(peer), block_size=16, seeds=1, steps=2)
    found = json.loads((place / "out-race" / "recipe.json").read_text())
    ours, theirs = found["rows"]
    assert (ours["name"], theirs["name"]) == ("ours", "nanoGPT")
    for run in (ours, theirs):
        assert run["seconds"] > run["ends"][-1] and run["seed"] == 1337 and run["kept"] == 2
        assert run["tokens"] > 100 and 2 < run["loss"] < 5
        assert "--eval_iters=20" in run["options"] and "--max_iters" not in run["options"]
    assert ours["options"].endswith("--dtype=float32") and ours["loss"] != theirs["loss"]
    ratio = ours["seconds"] / theirs["seconds"]
    assert f"ours to it: {ratio:.3f} of the time" in capsys.readouterr().out


def test_a_peer_that_is_none_is_one_line(place):
    with pytest.raises(UserError, match="give the folder of a nanoGPT checkout"):
        race.main(peer="/nowhere")


def test_a_run_that_fails_is_one_line(place, monkeypatch):
    monkeypatch.undo()
    (place / "program.py").write_text("print('out of luck')\nraise SystemExit(1)\n")
    with pytest.raises(UserError, match=r"a run failed: out of luck \(see .*log\)"):
        track.launch(["program.py"], place, place / "log")


def table_below(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of a page, without its head."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    rows = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines()),
    )
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][2:]


def test_every_technique_is_a_setting_with_its_source_and_a_row_of_what_it_brought():
    """On the page about training fast; the tables are those of the ablations."""
    known, named = settings("train.py", []), set()
    for technique, words, _, source in table_below("docs/fast-training.md", "technique does"):
        names = re.findall(r"`(\w+)", words)
        assert set(names) <= set(known), technique
        assert (names or words == "always") and (source or names == ["batch_order"]), technique
        named |= {*names}
    rows = table_below("docs/BENCHMARKS.md", "## Ablations of the fast recipe")
    assert [row[0] for row in rows] == [*race.ABLATIONS]
    text = (ROOT / "docs/BENCHMARKS.md").read_text(encoding="utf-8")
    change = text[text.index("| change | setting |") :].partition("\n\n")[0]
    asked = " ".join(race.ABLATIONS_BPE.values())
    for line in change.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("**") or not cells[1]:
            continue  # what the rows below are compared with; several at once
        for setting in re.findall(r"`([\w=.]+)`", cells[1]):
            name = setting.partition("=")[0]
            assert name in known and name in named | {"scalar_lr"}, line
            assert f"--{setting}" in asked or name == "scalar_lr", line
        assert "`" in cells[1] or (cells[1] == "not in the code" and "(" in cells[2]), line
