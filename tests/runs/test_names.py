"""bonsai/runs/names.py: which files of a folder are a run's, and which of them it goes on from."""

from bonsai.runs.names import (
    checkpoints,
    previous,
    remove_unfinished,
    resumable,
    run_files,
    spare,
    step_files,
    step_name,
)


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_files_of_other_names_are_not_a_runs(tmp_path):
    others = ["weights.pt", "ckpt.pth", "step_.pt", "best.prev.prev.pt", "notes.txt", "run.lock"]
    touch(tmp_path, "last.pt", "ckpt.pt", "ckpt.prev.pt", "step_10.pt", "log.txt", *others)
    (tmp_path / "best.pt").mkdir()  # a folder of that name
    assert names(checkpoints(tmp_path)) == ["ckpt.prev.pt", "ckpt.pt", "last.pt", "step_10.pt"]
    assert names(run_files(tmp_path))[4:] == ["log.txt"]
    assert checkpoints(tmp_path / "nowhere") == [] == run_files(tmp_path / "nowhere")


def test_steps_go_by_their_number(tmp_path):
    assert step_name(250) == "step_0000250.pt" and step_name(10**8) == "step_100000000.pt"
    touch(tmp_path, step_name(10**8), step_name(250), "step_9.pt")
    assert [step for step, _ in step_files(tmp_path)] == [9, 250, 10**8]


def test_what_a_run_goes_on_from(tmp_path):
    touch(tmp_path, "diverged.pt", "diverged.prev.pt")
    assert not resumable(tmp_path) and spare(tmp_path) == []
    touch(tmp_path, "best.pt", "best.prev.pt", step_name(1), step_name(2))
    assert resumable(tmp_path)
    assert names(spare(tmp_path)) == [step_name(2), "best.pt", "best.prev.pt"]
    assert previous(tmp_path / "best.pt") == tmp_path / "best.prev.pt"


def test_only_a_runs_own_unfinished_files_go(tmp_path):
    gone = ["ckpt.pt.1a2b3c4d.tmp", "metrics.jsonl.00000000.tmp", "step_0000001.pt.ffffffff.tmp"]
    stay = ["ckpt.pt.tmp", "ckpt.pt.1A2B3C4D.tmp", "thesis.doc.1a2b3c4d.tmp", "ckpt.pt"]
    touch(tmp_path, *gone, *stay)
    remove_unfinished(tmp_path)
    assert sorted(names(tmp_path.iterdir())) == sorted(stay)
    remove_unfinished(tmp_path / "nowhere")
