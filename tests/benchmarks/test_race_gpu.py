"""benchmarks/race_gpu.py at toy size beside a stand-in for the peer."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.peer import make_peer

from benchmarks import race_gpu, track
from bonsai.system.errors import UserError
from configurator import configure

OURS = "--block_size=16 --n_layer=1 --n_embd=16 --n_head=1 --batch_size=2 --dtype=float32"
OURS += " --device=cpu --gradient_accumulation_steps=2 --compile=False"
TOY = dict(dataset="shakespeare_char", tokens=384, block_size=16, shipped="2x4", ours=OURS)
TOY |= dict(batches="2x2,2x1", rates="0.1,0.2", at_once=1)  # in one process here


def settings(**changes):
    return configure(vars(race_gpu).copy(), settings={**TOY, **changes})


def test_every_run_has_the_same_text():
    """Tokens of a step times steps; to tune a third of them, judged without an evaluation."""
    c = settings()
    shipped = race_gpu.peer_arm(c, "shipped", "2x4", 6e-4)
    assert shipped.steps == 3 and not shipped.probe  # of 2 x 4 x 16 tokens
    assert "--gradient_accumulation_steps=4 --learning_rate=0.0006 " in shipped.options
    assert "--lr_decay_iters=3 --warmup_iters=0" in shipped.options
    probe = race_gpu.peer_arm(c, "tuning", "2x1", 0.1, 3)
    assert probe.steps == 4 and probe.probe
    ours = race_gpu.our_arm(c, "ours")
    assert ours.steps == 6 and ours.options.endswith("--lr_decay_iters=6")


def test_a_loss_is_read_off_a_smoothed_curve():
    falling = {"curve": [10.0 - i for i in range(10)]}
    assert race_gpu.read_off(falling, 5.0) == 6
    assert race_gpu.read_off({"curve": [9, 9, 9, 1, 9, 9, 9]}, 4.0) == 7  # one lucky batch is none
    assert race_gpu.read_off(falling, -1.0) == 10


def test_the_race_at_toy_size(place, monkeypatch, capsys):
    """One table: as shipped, tuned over both, ours with equal text and to both losses."""
    peer = str(make_peer(place / "peer"))
    race_gpu.main(**TOY, peer=peer)
    said = capsys.readouterr().out
    rows = json.loads((place / "out-race-gpu" / "race.json").read_text())["rows"]
    tuning = [r for r in rows if r["name"].startswith("tuning: ")]
    assert len(tuning) == 4 and all("kept" not in r for r in tuning)  # no evaluation
    compiled = [(r["name"], r["steps"]) for r in rows[4:6]]  # before what is timed
    assert compiled == [("compiling: as shipped", 2), ("compiling: ours", 2)]
    best = min(tuning, key=lambda r: r["loss"])["name"].removeprefix("tuning: ")
    text = (place / "out-race-gpu" / "race.txt").read_text()
    head = [line.split("|")[1].strip() for line in text.splitlines()[2:7]]
    assert head == [
        *("nanoGPT as shipped", f"nanoGPT tuned: {best}", "ours, equal text"),
        *("ours, to the loss as shipped", "ours, to the loss tuned"),
    ]
    assert text.count("times fewer tokens; read off our long run") == 2 and said.endswith(text)

    def forbidden(*args):
        raise AssertionError("run again")

    monkeypatch.setattr(track, "launch", forbidden)
    race_gpu.main(**TOY, peer=peer)
    assert (place / "out-race-gpu" / "race.txt").read_text() == text


def test_runs_to_tune_go_at_once(place, monkeypatch):
    """As many as are asked for, each once, and their rows in order."""
    runs, together = track.Track("race", "out", "shakespeare_char", 16), threading.Barrier(3)
    trained = []

    def train(arm, seed):
        trained.append(arm.name)
        together.wait(60)  # for the other two
        return {"loss": float(arm.name)}

    monkeypatch.setattr(runs, "train", train)
    arms = [track.Arm(str(i), "peer", 1, "", probe=True) for i in range(3)]
    for _ in range(2):
        assert [row["loss"] for row in runs.run_together(arms, 1, 3)] == [0, 1, 2]
    assert sorted(trained) == ["0", "1", "2"]


def test_each_run_to_tune_has_its_row_when_it_is_through(place, monkeypatch):
    """Where a later one fails, or the time is over, those before are not lost, and none follows."""
    runs, trained = track.Track("race", "out", "shakespeare_char", 16), []

    def train(arm, seed):
        trained.append(arm.name)
        if arm.name == "1":
            raise UserError("a run failed")
        return {"loss": 1.0}

    monkeypatch.setattr(runs, "train", train)
    arms = [track.Arm(str(i), "peer", 1, "", probe=True) for i in range(3)]
    with pytest.raises(UserError, match="a run failed"):
        runs.run_together(arms, 1, 1)
    rows = json.loads((place / "out" / "race.json").read_text())["rows"]
    assert rows[0]["name"] == "0" and trained[:2] == ["0", "1"]
    runs.minutes, runs.begin = 1.0, runs.begin - 61
    with pytest.raises(UserError, match="minutes are over"):
        runs.run_together([arms[0], track.Arm("3", "peer", 1, "")], 1, 2)
    assert "3" not in trained


def test_data_are_copied_whole_and_anew_where_they_have_changed(tmp_path):
    """A call that was ended has left a part of a copy; a data set may be prepared anew."""
    source, target = tmp_path / "data" / "text", tmp_path / "ours" / "text"
    source.mkdir(parents=True)
    (source / "prepare.py").touch()
    (tmp_path / "ours" / "text.part").mkdir(parents=True)
    for size in (3, 5, 5):
        (source / "train.bin").write_bytes(bytes(size))
        track.copy_data(source, target)
        assert (target / "train.bin").stat().st_size == size
        assert [f.name for f in (tmp_path / "ours").iterdir()] == ["text"]
    assert [f.name for f in target.iterdir()] == ["train.bin"]


def test_another_text_or_machine_is_another_race(place):
    for name in ("shakespeare_char", "other"):
        results = track.Track("race", "out", name, 16).results
        assert results.rows == []
        results.add({"name": name})
        (place / "data" / "other").mkdir(exist_ok=True)
        for file in (place / "data" / "shakespeare_char").iterdir():
            (place / "data" / "other" / file.name).write_bytes(file.read_bytes())
    assert len(track.Track("race", "out", "other", 16).results.rows) == 1


@pytest.mark.parametrize("memory, runs", [(80e9, 2), (150e9, 4), (16e9, 1)])
def test_as_many_runs_to_tune_as_fit(monkeypatch, memory, runs):
    properties = SimpleNamespace(total_memory=int(memory))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert race_gpu.room_for() == runs


def test_what_the_clock_cuts_short_has_a_table(place):
    peer = str(make_peer(place / "peer"))
    race_gpu.main(**TOY)  # ours alone
    with pytest.raises(UserError, match="minutes are over: repeat the command to go on"):
        race_gpu.main(**TOY, peer=peer, minutes=1e-9)
    text = (place / "out-race-gpu" / "race.txt").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["ours"]


@pytest.mark.parametrize("falls", [True, False])
def test_our_run_ends_at_the_loss_or_is_the_last_that_was_tried(falls):
    """From three quarters of what was read off up, at most as long as the long run."""
    long, tried = {"curve": [9.0 - i / 4 for i in range(32)], "steps": 32, "loss": 1.0}, []

    class Runs:
        def run(self, arm, seed):
            tried.append(arm.steps)
            return {"loss": 9.0 - arm.steps / 4 if falls else 9.0, "steps": arm.steps}

    found = race_gpu.to_the_loss(settings(), Runs(), long, "ours", 4.0)
    step = race_gpu.read_off(long, 4.0)
    assert tried[0] == step * 3 // 4 and tried == sorted(set(tried)) and found["steps"] == tried[-1]
    assert (found["loss"] <= 4.0) == falls and len(tried) <= 4
