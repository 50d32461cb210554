"""benchmarks/race.py, ablation.py and clock.py, at toy size and with a stand-in for the peer."""

import json
import os
import subprocess
import sys

import pytest
from helpers.programs import ROOT

PROGRAM = """
import torch
print(torch.initial_seed(), flush=True)
torch.manual_seed(1337)
print(torch.initial_seed(), flush=True)
open("data.bin", "rb").close()
w = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([w], lr=0.1)
for _ in range(4):
    w.grad = torch.ones(3)
    optimizer.step()
"""

# prints and leaves what nanoGPT does
PEER = """
import sys
import torch
from model import GPT, GPTConfig
given = dict(a[2:].split("=") for a in sys.argv[1:] if "=" in a)
torch.manual_seed(1337)
print("tokens per iteration will be: 64")
open("data/chars/train.bin", "rb").close()
args = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, bias=False)
args |= dict(vocab_size=VOCAB, dropout=0.0)
model = GPT(GPTConfig(**args))
optimizer = torch.optim.SGD(model.parameters(), lr=float(given["learning_rate"]))
for i in range(int(given["max_iters"]) + 1):
    x = torch.randint(args["vocab_size"], (4, 16))
    loss = model(x, x)[1]
    loss.backward()
    optimizer.step()
    print(f"iter {i}: loss {loss.item():.4f}, time 1.00ms, mfu 1.00%")
import os
os.makedirs(given["out_dir"])
state = {"model": model.state_dict(), "model_args": args, "iter_num": 0, "best_val_loss": 1.0}
torch.save({**state, "config": {}}, given["out_dir"] + "/ckpt.pt")
"""


def start(script: str, *args: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_the_clock_counts_steps_from_the_data_on(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"12")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = start("clock.py", "times.json", "3", "5", "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "1342"
    times = json.loads((tmp_path / "times.json").read_text())
    assert len(times) == 3 and 0 < times[0] < times[1] < times[2]


TOY = "--ours=--block_size=16 --n_layer=1 --n_embd=16 --n_head=1 --batch_size=4 --dtype=float32"


def test_a_race_at_toy_size(workplace, tmp_path):
    """Ours and a stand-in for the peer, swept; run again it repeats nothing."""
    peer = tmp_path / "peer"
    (peer / "config").mkdir(parents=True)
    vocab = json.loads((workplace / "data" / "meta" / "meta.json").read_text())["vocab_size"]
    (peer / "train.py").write_text(PEER.replace("VOCAB", str(vocab)).replace("chars", "meta"))
    (peer / "model.py").write_text((ROOT / "model.py").read_text())
    (peer / "configurator.py").write_text("")
    args = ["--dataset=meta", f"--peer={peer}", "--steps=3", "--seeds=2", "--sweep=True", TOY]
    args += ["--out=out-race", "--plot=race.png", "--block_size=16"]
    folder = workplace
    done = start("race.py", *args, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nanoGPT, tuned" in done.stdout and "times the seconds" in done.stdout
    assert (folder / "race.png").stat().st_size > 10_000
    results = json.loads((folder / "out-race" / "cpu.json").read_text())
    names = [r["name"] for r in results["runs"]]
    assert names.count("ours") == names.count("nanoGPT") == names.count("nanoGPT, tuned") == 2
    for r in results["runs"]:
        assert len(r["ends"]) == len(r["curve"]) == r["steps"] and r["seconds"] > 0
    ours = [r for r in results["runs"] if r["name"] == "ours"]
    assert ours[0]["tokens"] == 3 * 4 * 16 and ours[0]["loss"] != ours[1]["loss"]
    again = start("race.py", *args, cwd=folder)
    assert "seed 1337, 3 steps:" not in again.stdout and again.returncode == 0


def test_ablations_at_toy_size(workplace):
    """Two rows; the changed one has another loss than the recipe."""
    (workplace / "data" / "shakespeare_char").mkdir(exist_ok=True)
    for path in (workplace / "data" / "meta").iterdir():
        (workplace / "data" / "shakespeare_char" / path.name).write_bytes(path.read_bytes())
    args = ["--only=head", "--steps=2", "--seeds=1", "--out=out-ablation"]
    done = start("ablation.py", *args, cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((workplace / "out-ablation" / "ablation.json").read_text())["rows"]
    assert [r["name"] for r in rows] == ["the recipe", "head: tied to the embedding"]
    assert rows[1]["difference"] != 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--race=moon"], "race=moon is not one of cpu"),
        (["--dataset=nothing_here"], "no data set nothing_here"),
        (["--dataset=meta", "--peer=/nowhere"], "give the folder of a nanoGPT checkout"),
        (["--seeds=0"], "seeds=0 must be at least 1"),
    ],
)
def test_mistakes(workplace, args, says):
    done = start("race.py", "--out=out-race-mistakes", *args, cwd=workplace)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr
