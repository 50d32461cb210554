"""projects/scaling: a sweep at toy size, and its resumption."""

import functools
import json
import sys

import pytest
from helpers.programs import ROOT, assert_one_line_error, run_command
from helpers.settings import settings

from projects import common
from projects.scaling import scaling

SCRIPT = str(ROOT / "projects" / "scaling" / "scaling.py")


def test_parameters_of_a_size():
    """12 L d^2 and the embedding, which is the head too."""
    c = settings("projects/scaling/scaling.py", [])
    assert scaling.count_parameters(c, 4, 128) == 12 * 4 * 128**2 + 257 * 128


def test_a_sweep_and_its_resumption(workplace, tmp_path, monkeypatch, capsys):
    # six runs, started as the tests start programs
    monkeypatch.setattr(common, "run_and_pass_on", lambda words: run_command(words, workplace).rc)
    monkeypatch.setattr(scaling, "chinchilla_fit", functools.cache(scaling.chinchilla_fit))
    monkeypatch.chdir(workplace)
    options = "--dataset=meta --block_size=16 --batch_size=4 --device=cpu --dtype=float32"
    settings = {"sizes": "1x16,1x32", "budgets": "0.004,0.01,0.02", "options": options}
    scaling.main(**settings, out_dir=str(tmp_path))
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert len(results["runs"]) == 6 and set(results["law"]) == {"E", "A", "B", "alpha", "beta"}
    assert all(2 < run["loss"] < 4 for run in results["runs"])
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    assert "N_opt ~ C^" in said and "approach 2" in said
    scaling.main(**settings, out_dir=str(tmp_path))
    assert capsys.readouterr().out.count("not trained again") == 6
    assert json.loads((tmp_path / "scaling.json").read_text()) == results


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--sizes=2by64"], "2x64,4x128"),
        (["--sizes=2x60"], "multiple of 16"),
        (["--budgets=0.1,much"], "'much' is none"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, hint):
    assert_one_line_error(run_command([sys.executable, SCRIPT, *options], tmp_path), hint)
