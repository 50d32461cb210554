"""projects/baby_gpt: the golden numbers of the original notes, the pictures, the mistakes."""

import json
import os
import re
import shutil
import sys

import pytest
from helpers.programs import ROOT, assert_one_line_error, run_command
from helpers.settings import settings

from bonsai.tokenizers import CharTokenizer
from projects.baby_gpt import baby_gpt

SCRIPT = str(ROOT / "projects" / "baby_gpt" / "baby_gpt.py")
DEFAULTS = settings("projects/baby_gpt/baby_gpt.py", [])


def script(cwd, *options, env=None):
    return run_command([sys.executable, SCRIPT, *options], cwd, env)


@pytest.fixture(scope="module")
def trained():
    return baby_gpt.train(DEFAULTS, CharTokenizer("01"))


def test_the_numbers_of_the_original(trained):
    """P(next | state) before and after training, as seen with nanoGPT's initialisation."""
    model, chains = trained
    assert model.num_params(non_embedding=False) == 12_656
    first, last = chains[0].probs, chains[50].probs
    at_init = {"000": 0.4963, "001": 0.4516, "011": 0.4518, "110": 0.4963, "111": 0.4520}
    assert {s: first[s][0] for s in at_init} == pytest.approx(at_init, abs=1e-4)
    assert last["101"][1] == pytest.approx(0.7929, abs=1e-4)
    assert last["111"] == pytest.approx([0.5464, 0.4536], abs=1e-4)
    assert last["000"][1] == pytest.approx(0.7316, abs=1e-4)
    assert chains[49].loss == pytest.approx(0.4700, abs=1e-4)  # of the last of the 50 steps


def test_the_batch_is_every_window():
    x, y = baby_gpt.windows("111101111011110", CharTokenizer("01"), 3)
    assert x.shape == y.shape == (12, 3)
    assert x[:3].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert (y[:, :-1] == -1).all() and y[:, -1].tolist() == [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0]


def test_states():
    assert len(baby_gpt.states("01", 3)) == 8
    assert len(baby_gpt.states("01", 3, shorter=True)) == 14
    assert baby_gpt.following("011", "0", 3) == "110"
    assert baby_gpt.following("0", "1", 3) == "01"


def test_the_size_of_the_state_of_larger_models():
    text = baby_gpt.state_spaces(3, "01")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines()}
    assert "15,992" in rows["GPT-2"] and "1,024" in rows["GPT-2"]
    assert "31,984" in rows["GPT-2, as the original notes have it"]
    assert "| 8 " in rows["this one"]


def test_the_page_holds_every_step(trained):
    model, chains = trained
    text = baby_gpt.page(DEFAULTS, chains, model)
    assert not re.search(r'(src|href)="|url\(h|import ', text)  # nothing from elsewhere
    data = json.loads(re.search(r"^const data = (.*);$", text, re.M)[1])
    assert [c["step"] for c in data["chains"]] == list(range(51))
    where = data["states"].index("101")
    assert data["chains"][50]["probs"][where] == pytest.approx([0.2071, 0.7929], abs=1e-4)


def test_every_arrow_is_in_the_diagram(trained):
    _, chains = trained
    source = baby_gpt.dot([chains[0], chains[50]], "01", 3, shorter=True)
    assert source.count(" -> ") == 2 * 14 * 2
    assert '"50:101" -> "50:011" [label="1 79%"' in source
    assert '"0:0" -> "0:01"' in source


def test_another_vocabulary_without_graphviz(tmp_path):
    options = ["--sequence=abcabcabb", "--vocabulary=abc", "--context=2", "--steps=3"]
    env = {"PATH": str(tmp_path)}  # no dot in there
    done = script(tmp_path, *options, "--shorter", env=env)
    assert done.rc == 0 and "Graphviz (dot) is not installed" in done.stdout, done
    out = tmp_path / "out-baby-gpt"
    assert sorted(os.listdir(out)) == ["baby_gpt.html", "states.dot"]
    assert (out / "states.dot").read_text().count(" -> ") == 3 * (3 + 9) * 3


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz (dot) is not installed")
def test_graphviz_takes_any_symbol(tmp_path):
    done = script(tmp_path, '--vocabulary=a"\\', '--sequence=a"\\a"', "--context=1", "--steps=1")
    assert done.rc == 0 and (tmp_path / "out-baby-gpt" / "states.svg").exists(), done


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--sequence=1112"], "'2'"),
        (["--sequence=111"], "no window of context 3"),
        (["--vocabulary=0"], "at least two symbols"),
        (["--vocabulary=00"], "distinct"),
        (["--context=0"], "at least 1"),
        (["--context=9"], "512 states"),
        (["--n_head=3"], "not divisible"),
    ],
)
def test_mistakes_are_one_line(tmp_path, options, hint):
    assert_one_line_error(script(tmp_path, *options), hint)
