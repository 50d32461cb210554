"""earlier.py: a folder that is used again loses nothing, at whatever moment it is killed."""

import os
from pathlib import Path

import pytest
from helpers.checkpoints import state
from helpers.kills import killed_after

from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.earlier import set_aside, set_aside_newer, take_back
from bonsai.runs.names import step_name
from bonsai.system.errors import UserError


def make_run(folder: Path, steps=(1, 2, 3)) -> None:
    for step in steps:
        save_checkpoint(folder, state(step), ("ckpt.pt", "last.pt", "best.pt", step_name(step)))
    for name in ("metrics.jsonl", "log.txt", "config.json", "loss.png"):
        (folder / name).write_text(f"{name} of {steps}")


def contents(folder: Path) -> dict[str, bytes]:
    """What the files under a folder hold, by name without the folders."""
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_file_of_a_run_moves_and_no_other(tmp_path):
    assert set_aside(tmp_path / "nothing") == "" and not (tmp_path / "nothing").exists()
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("not a run's file")
    (out / "my_step_1.pt").write_text("nor this")
    (out / "log.txt").write_text("no checkpoint, no metrics: not a run")
    assert set_aside(out) == "" and not (out / "earlier").exists()
    for number in (1, 2, 3):
        make_run(out, (number, 10 * number))
        mine = {"mine.txt", "my_step_1.pt"}
        run = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name not in mine}
        line = set_aside(out)
        assert str(out / "earlier" / str(number)) in line and "MB" in line
        assert contents(out / "earlier" / str(number)) == run and len(run) == 12
        assert {p.name for p in out.iterdir()} == mine | {"earlier"}
    assert (out / "earlier" / "1" / "metrics.jsonl").read_text().endswith("(1, 10)")
    assert len(list((out / "earlier").iterdir())) == 3


@pytest.mark.parametrize(
    "text, is_ours",
    [
        ('{"model_type": "gpt2", "n_layer": 12}', False),  # a model of Hugging Face's
        ('{"compilerOptions": {}}', False),
        ("[1, 2]", False),
        ("no JSON", False),
        ('{"out_dir": "out", "n_layer": 12}', True),  # a run that ended before its first row
    ],
)
def test_the_settings_of_others_are_not_written_over(tmp_path, text, is_ours):
    (tmp_path / "config.json").write_text(text)
    if is_ours:
        assert set_aside(tmp_path) == ""
    else:
        with pytest.raises(UserError, match=r"config\.json is no run's.*--out_dir"):
            set_aside(tmp_path)
    assert (tmp_path / "config.json").read_text() == text


def test_metrics_alone_are_a_run_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iter": 0}\n')
    assert set_aside(tmp_path) and names(tmp_path) == ["earlier/1/metrics.jsonl"]


def test_the_curves_of_one_run_are_not_drawn_over_another(tmp_path):
    make_run(tmp_path)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.1").write_text("its curves")
    set_aside(tmp_path)
    assert "earlier/1/tensorboard/events.1" in names(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_what_an_older_version_has_set_aside_stays(tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "ckpt.pt").write_text("of before")
    make_run(tmp_path)
    set_aside(tmp_path)
    assert (tmp_path / "earlier" / "ckpt.pt").read_text() == "of before"
    assert (tmp_path / "earlier" / "1" / "ckpt.pt").exists()


@pytest.mark.parametrize("then", [set_aside, take_back])
def test_killed_at_any_moment(tmp_path, then):
    """Then the command once more, or a resume: not a byte is missing, all of it in one folder."""
    for moment in range(40):
        out = tmp_path / f"{then.__name__}{moment}"
        make_run(out)
        before = contents(out)
        with killed_after(moment, (os, "replace"), (Path, "mkdir")) as killed:
            set_aside(out)
        if not killed():
            break
        then(out)
        assert contents(out) == before
        folders = {p.parent for p in out.rglob("*") if p.is_file()}
        assert len(folders) == 1, "the run is in pieces"
        assert (out / "ckpt.pt").exists() == (then is take_back)
    assert moment > 10


def test_what_a_kill_has_left_half_moved_is_not_replaced_by_another_run(tmp_path):
    """ckpt.pt was moved; before the next new run somebody, or another program, wrote one there."""
    part = tmp_path / "earlier" / "1.part"
    save_checkpoint(part, state(1))
    (part / "metrics.jsonl").write_text("rows")
    (tmp_path / "metrics.jsonl").write_text("rows")  # a copy: of the same run
    save_checkpoint(tmp_path, state(2))
    before = sorted(p.read_bytes() for p in tmp_path.rglob("*.pt"))
    assert "earlier/3 " in set_aside(tmp_path)
    assert sorted(p.read_bytes() for p in tmp_path.rglob("*.pt")) == before
    left = ["earlier/2/ckpt.pt", "earlier/2/metrics.jsonl"]
    assert names(tmp_path) == [*left, "earlier/3/ckpt.pt", "earlier/3/metrics.jsonl"]


def test_going_back_sets_aside_what_came_after(tmp_path):
    for step in range(1, 8):
        save_checkpoint(tmp_path, state(step), ("last.pt", step_name(step)), keep_last=4)
    save_checkpoint(tmp_path, state(6), ("best.pt",))
    (tmp_path / "metrics.jsonl").write_text("rows")
    assert set_aside_newer(tmp_path, 7) == ""
    (tmp_path / "last.pt").write_bytes((tmp_path / step_name(5)).read_bytes())
    line = set_aside_newer(tmp_path, 5)
    assert "step 5" in line and "best.pt" in line and "earlier" in line
    moved = ["best.pt", "last.prev.pt", "metrics.jsonl", step_name(6), step_name(7)]
    assert sorted(p.name for p in (tmp_path / "earlier" / "1").iterdir()) == moved
    assert (tmp_path / "metrics.jsonl").exists()
    # and keep_last counts what belongs to the run that goes on
    for step in (6, 7, 8):
        save_checkpoint(tmp_path, state(step), ("last.pt", step_name(step)), keep_last=2)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == [step_name(7), step_name(8)]
    assert (tmp_path / "earlier" / "1" / step_name(7)).exists()


def test_keep_last_never_counts_or_deletes_later_steps(tmp_path):
    """By number, also where the numbers have no longer as many digits."""
    for step in (9_999_999, 10_000_001, 10_000_002, 20_000_000):
        save_checkpoint(tmp_path, state(step), (step_name(step),))
    save_checkpoint(tmp_path, state(10_000_003), (step_name(10_000_003),), keep_last=2)
    left = {int(p.stem[5:]) for p in tmp_path.glob("step_*")}
    assert left == {10_000_002, 10_000_003, 20_000_000}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_that_may_not_be_changed(tmp_path):
    make_run(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="out_dir"):
            set_aside(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_way(tmp_path):
    make_run(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "earlier").write_text("a file")
    with pytest.raises(UserError, match="out_dir"):
        set_aside(tmp_path)
    assert {**before, "earlier": b"a file"} == contents(tmp_path)
