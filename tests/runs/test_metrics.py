"""bonsai/runs/metrics.py: always JSON, and a broken line costs that line alone."""

import json
import os

import pytest

from bonsai.runs.metrics import (
    each_row,
    evaluations,
    forget_after,
    read_curve,
    read_evaluations,
    read_metrics,
    row_text,
)
from bonsai.system.errors import UserError


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iter": 0, "loss": 1}\n{"iter": 1, "lo')
    assert read_metrics(tmp_path) == [{"iter": 0, "loss": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_does_not_have_is_null(value):
    text = row_text({"iter": 3, "loss": value, "lr": 0.5})
    assert json.loads(text, parse_constant=pytest.fail) == {"iter": 3, "loss": None, "lr": 0.5}


BROKEN = ['{"iter": "1"}', '{"loss": 1.0}', "[]", "3", '{"iter": 1, "loss": "a"}', '{"iter": -1}']
BROKEN += [f'{{"iter": {2**63}, "loss": 1}}']
BROKEN += ['{"iter": 1, "x": ' + "1" * 70_000 + "}"]
BROKEN += ['{"iter": 1.5}', '{"iter": true}', '{"iter": 1, "x": {}}', "\udcff", "[" * 100_000]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_line_that_is_no_row_is_left_out_and_counted(tmp_path, line):
    path, good = tmp_path / "metrics.jsonl", '{"iter": 0, "loss": 1}\n'
    path.write_bytes((good + line + "\n" + good).encode(errors="surrogateescape"))
    assert [*each_row(path)] == [{"iter": 0, "loss": 1}, None, {"iter": 0, "loss": 1}]
    assert forget_after(path, 5, -1) == 1
    assert path.read_text() == good * 2


def test_a_curve_is_read_without_its_rows(tmp_path):
    lines = ['{"iter": 0, "val_loss": 3.5, "lr": 1}', "broken", '{"iter": 0, "loss": 3}']
    lines += ['{"iter": 1, "loss": null}', '{"iter": 2, "loss": 2.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    steps, losses, evals = read_curve(tmp_path)
    assert (steps.tolist(), losses.tolist()) == ([0, 2], [3.0, 2.5])
    assert evals == [{"iter": 0, "val_loss": 3.5, "lr": 1}]
    assert read_evaluations(tmp_path) == evals
    assert not any(map(len, read_curve(tmp_path / "nowhere")))
    assert read_evaluations(tmp_path / "nowhere") == []


def test_what_is_done_again_is_forgotten(tmp_path):
    """A resume from step 2: its losses and evaluations stay if they are not made anew."""
    rows = [{"iter": i, "loss": 1.0} for i in range(4)]
    rows.insert(2, {"iter": 2, "val_loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    for evaluated, expected in ((2, [0, 1, 2]), (0, [0, 1])):
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert forget_after(path, 2, evaluated) == 0
        assert [r["iter"] for r in read_metrics(tmp_path)] == expected


def test_what_is_kept_stays_as_it_was_written(tmp_path):
    lines = ['{"iter":0,"loss":1e-1}', '{"iter": 1, "loss": 1}', '{"iter": 2}']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\r\n".join(lines).encode())
    assert forget_after(path, 2, -1) == 0
    assert path.read_bytes().decode() == "\n".join([*lines[:2], ""])


@pytest.mark.parametrize("marked, steps", [((), [0, 2, 4]), ((2,), [2, 4]), ((2, 4), [4])])
def test_losses_on_other_data_do_not_compare(marked, steps):
    rows = [{"iter": i, "loss": 1.0} for i in range(5)]
    for i in (0, 2, 4):
        rows.append({"iter": i, "val_loss": 1.0} | ({"other_data": 1} if i in marked else {}))
    assert [row["iter"] for row in evaluations(rows)] == steps


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with a name")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"a folder|a pipe|a device"):
        forget_after(tmp_path / "metrics.jsonl", 5, -1)
