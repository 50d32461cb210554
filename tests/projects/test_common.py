"""projects/common.py: a run that is there already, and how one ends."""

import os
import signal
import sys
import threading
import time

import pytest
import torch
from helpers.checkpoints import state
from helpers.tiny_data import make_dataset

from bonsai.data.dataset import Mixture, open_dataset
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.system.errors import UserError
from model import GPT, GPTConfig
from projects import common
from projects.attention_whatif import whatif
from projects.baby_gpt import baby_gpt
from projects.digits import digits

CONFIG = {"seed": 1337, "learning_rate": 1e-3, "decay_lr": True, "optimizer": "adamw"}
CONFIG |= {"save_interval": 3, "device": "cpu", "block_size": 8}


@pytest.fixture
def started(monkeypatch) -> list:
    """The commands by which train.py was called."""
    commands = []
    monkeypatch.setattr(common, "run_and_pass_on", lambda command: commands.append(command) or 0)
    return commands


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--seed=1337", ""),
        ("--learning_rate=0.001", ""),
        ("--decay_lr=yes", ""),
        ("--save_interval=9", ""),  # changes nothing about the model
        ("--device=cuda", ""),
        ("--seed=3", "seed=1337, not 3"),
        ("--learning_rate=1e-2", r"learning_rate=0\.001, not 0\.01"),
        ("--decay_lr=off", "decay_lr=True, not False"),
        ("--optimizer=muon", "optimizer=adamw, not muon"),
        ("--patch_size=4", "patch_size=None, not 4"),  # of another model
    ],
)
def test_a_finished_run_is_of_the_options_or_refused(tmp_path, capsys, started, option, hint):
    """Else what it says would be taken for what was asked."""
    save_checkpoint(tmp_path / "run", {**state(20), "config": CONFIG})
    if hint:
        with pytest.raises(UserError, match=f"was trained with {hint}: set another --out_dir"):
            common.train("config.py", tmp_path / "run", 20, option)
    else:
        common.train("config.py", tmp_path / "run", 20, option)
        assert "has 20 steps already: not trained again" in capsys.readouterr().out
    assert not started
    common.train("config.py", tmp_path / "run", 30, option)  # goes on: train.py looks at them
    assert started[0][-1] == option and "--init_from=auto" in started[0]


@pytest.mark.parametrize("steps", [20, 30])
def test_a_run_of_other_data_is_refused(tmp_path, started, steps):
    """As of rows of which others are held out: it has learnt what it would be asked."""
    folder = make_dataset(tmp_path / "data", "rows")
    data = Mixture.open(str(folder)).fingerprints()
    save_checkpoint(tmp_path / "run", {**state(20), "config": CONFIG, "data": data})
    common.train("config.py", tmp_path / "run", steps, f"--dataset={folder}")
    moved = folder.rename(tmp_path / "moved")
    common.train("config.py", tmp_path / "run", steps, f"--dataset={moved}")  # is the same
    other = make_dataset(tmp_path / "other", "rows", seed=5)
    with pytest.raises(UserError, match="was trained on other data"):
        common.train("config.py", tmp_path / "run", steps, f"--dataset={other}")
    folder = moved.rename(folder)
    mask = folder / "val.mask.bin"
    mask.write_bytes(bytes(1 - byte for byte in mask.read_bytes()))
    with pytest.raises(UserError, match=r"was trained on other data than .* set another --out_dir"):
        common.train("config.py", tmp_path / "run", steps, f"--dataset={folder}")
    assert len(started) == 2 * (steps > 20)


CHILD = """
import signal, sys, time
def save(number, frame):
    time.sleep(1)  # longer than subprocess.run waits before it kills
    open(sys.argv[1], "w").write("saved")
    sys.exit(128 + number)
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), save)
open(sys.argv[1], "w").write("ready")
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_left_to_the_run_which_saves(tmp_path, monkeypatch, name):
    number, file = getattr(signal, name), tmp_path / "state"
    before = signal.getsignal(number)

    def when_it_is_ready():
        while not (file.exists() and file.read_text() == "ready"):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    run = common.run_and_pass_on
    command = [sys.executable, "-c", CHILD, str(file)]
    monkeypatch.setattr(common, "run_and_pass_on", lambda _: run(command))
    threading.Thread(target=when_it_is_ready).start()
    with pytest.raises(SystemExit) as end:
        common.train("config.py", tmp_path / "run", 20)
    assert end.value.code == 128 + number and file.read_text() == "saved"
    assert signal.getsignal(number) == before


def test_an_error_of_the_run_is_one_line(tmp_path, monkeypatch):
    run = common.run_and_pass_on
    monkeypatch.setattr(
        common, "run_and_pass_on", lambda _: run([sys.executable, "-c", "raise SystemExit(3)"])
    )
    with pytest.raises(UserError, match="ended with status 3"):
        common.train("config.py", tmp_path / "run", 20)


def test_loss_by_position_leaves_out_what_is_masked(tmp_path):
    split = open_dataset(str(make_dataset(tmp_path / "rows", "rows"))).split("val")
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=7, vocab_size=30))
    losses = common.loss_by_position(model, split, 7, 10**6)
    assert losses[:3].isnan().all() and losses[3:].isfinite().all()
    x, y = map(torch.from_numpy, split.windows(split.eval_starts(7), 7))
    whole = model.eval()(x, y)[1].item()
    assert losses[3:].mean().item() == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("project", [digits, baby_gpt, whatif], ids=lambda p: p.__name__)
def test_a_folder_that_cannot_be_written_is_found_before_the_training(
    project, tmp_path, monkeypatch, workplace
):
    if project is digits:
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    (tmp_path / "file").write_text("a file")
    monkeypatch.setattr(project, "train", lambda *args: pytest.fail("it trains"))
    options = {"dataset": str(workplace / "data" / "meta")} if project is whatif else {}
    for out_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot write .* to {out_dir}"):
            project.main(out_dir=str(out_dir), **options)
