"""nanoGPT's recipe for a CPU, word for word, as whole programs: ours and nanoGPT's own.

    python data/shakespeare_char/prepare.py
    python benchmarks/recipe.py --peer=../nanoGPT

Both train on the same prepared data with the same seeds, in turn, in float32. The clock runs from
the start of a process to its end. Both checkpoints, which both programs keep at the lowest
validation estimate, are then evaluated by our eval.py on the whole validation split in the same
windows. At the full 2000 steps a run takes one to two minutes.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from bonsai import ROOT
from bonsai.data.dataset import find_folder
from bonsai.files.jsonfile import write_json
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import header, provenance
from bonsai.system.tables import spread, table
from configurator import configure, resolve_path

# -----------------------------------------------------------------------------
peer = ""  # folder of a nanoGPT checkout; empty: ours alone [path]
seeds = 3  # runs of each program; theirs and ours have the same seeds, 1337 and up [>= 1]
max_iters = 2000  # fewer: a quick test of this script [>= 1]
data = ""  # a prepared shakespeare_char folder; empty: the one in data/ [path]
input = ""  # or the text, to be prepared here [path]
out = "out-recipe"  # folder for the runs, their logs, and recipe.json [path]
# -----------------------------------------------------------------------------

RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
SEED = 1337  # in the peer's train.py it is a constant, so seeds are counted from there
PEER_RUNNER = """
import runpy, sys, torch
offset, seed_as_told = int(sys.argv.pop(1)), torch.manual_seed
torch.manual_seed = lambda seed: seed_as_told(seed + offset)
runpy.run_path("train.py", run_name="__main__")
"""
COLUMNS = (
    ("project", "project", ""),
    ("seed", "seed", ""),
    ("seconds", "seconds", ".1f"),
    ("step kept", "step", "d"),
    ("val loss", "loss", ".4f"),
)


def find_data(folder: Path) -> Path:
    """The prepared data, made in `folder` if --input names a text."""
    if input:
        script = ROOT / "data" / "shakespeare_char" / "prepare.py"
        made = folder / "prepared"
        command = [sys.executable, script, f"--input={resolve_path(input)}", f"--out={made}"]
        subprocess.run([*map(str, command)], check=True)
        return made
    found = resolve_path(data) if data else find_folder("shakespeare_char")
    if not all((found / name).exists() for name in ("train.bin", "val.bin", "meta.pkl")):
        raise UserError(
            f"{found} lacks train.bin, val.bin or meta.pkl: prepare the data, or --input"
        )
    return found


def make_workplace(folder: Path, prepared: Path, checkout: Path | None) -> Path:
    """A folder to run in: data/, and for the peer copies of its programs and config files."""
    shutil.rmtree(folder, ignore_errors=True)
    place = folder / "data" / "shakespeare_char"
    place.mkdir(parents=True)
    for name in ("train.bin", "val.bin", "meta.pkl", "meta.json"):
        if (prepared / name).exists():
            shutil.copyfile(prepared / name, place / name)
    if checkout:
        for name in ("train.py", "model.py", "configurator.py"):
            if not (checkout / name).is_file():
                raise UserError(f"peer={peer} has no {name}: give the folder of a nanoGPT checkout")
            shutil.copyfile(checkout / name, folder / name)
        shutil.copytree(checkout / "config", folder / "config")
    return folder


def train(project: str, seed: int, place: Path, options: list[str]) -> float:
    """One run as a process of its own, into place/out-SEED; returns its seconds."""
    if project == "ours":
        command = [str(ROOT / "train.py"), *options, "--dtype=float32", f"--seed={seed}"]
    else:  # on a CPU it computes in float32 whatever its dtype says
        command = ["-c", PEER_RUNNER, str(seed - SEED), *options]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    env["CUDA_VISIBLE_DEVICES"] = ""
    log = place / f"{seed}.log"
    begin = time.perf_counter()
    with open(log, "w", encoding="utf-8") as f:
        done = subprocess.run(
            [sys.executable, *command, f"--out_dir=out-{seed}"],
            cwd=place,
            env=env,
            stdout=f,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.perf_counter() - begin
    if done.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{project} failed with seed {seed}: {' '.join(last)} (see {log})")
    return seconds


def evaluate(folders: list[Path], place: Path) -> list[dict]:
    """Loss of each run on the whole validation split, by eval.py."""
    target = place / "eval.json"
    command = [str(ROOT / "eval.py"), "--dataset=shakespeare_char", "--block_size=64"]
    command += ["--device=cpu", f"--init_from={','.join(map(str, folders))}", f"--json={target}"]
    done = subprocess.run([sys.executable, *command], cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"eval.py failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return json.loads(target.read_text(encoding="utf-8"))["losses"]


def main() -> None:
    configure(globals())
    base = Path(out).resolve()
    base.mkdir(parents=True, exist_ok=True)
    if "," in str(base):
        raise UserError(f"out={out}: the path must not have a comma")
    print("\n".join(header(torch.device("cpu"))), flush=True)
    prepared = find_data(base)
    places = {"ours": make_workplace(base / "ours", prepared, None)}
    if peer:
        places["peer"] = make_workplace(base / "peer", prepared, resolve_path(peer))
    options = RECIPE.split()
    if max_iters != 2000:
        options += [f"--max_iters={max_iters}", f"--lr_decay_iters={max_iters}"]
        options += [f"--eval_interval={min(250, max_iters)}", "--always_save_checkpoint=True"]
        options += [f"--warmup_iters={min(100, max_iters // 2)}"]
    runs = []
    for k in range(seeds):
        for project in list(places)[:: -1 if k % 2 else 1]:  # the first slot is no advantage
            seconds = train(project, SEED + k, places[project], options)
            print(f"{project}, seed {SEED + k}: {seconds:.1f} s", flush=True)
            runs.append({"project": project, "seed": SEED + k, "seconds": seconds})
    runs.sort(key=lambda r: (r["project"], r["seed"]))
    folders = [places[r["project"]] / f"out-{r['seed']}" for r in runs]
    for r, row in zip(runs, evaluate(folders, places["ours"])):
        r.update(loss=row["loss"], step=row["step"], tokens=row["tokens"])
    print(f"\n{table(runs, COLUMNS)}\n")

    results = {**provenance(torch.device("cpu")), "recipe": " ".join(options), "runs": runs}
    for project in places:
        mine = [r for r in runs if r["project"] == project]
        losses, seconds = [r["loss"] for r in mine], spread([r["seconds"] for r in mine])
        mean, low, high = statistics.mean(losses), min(losses), max(losses)
        results[project] = {"loss": {"mean": mean, "low": low, "high": high}, "seconds": seconds}
        print(
            f"{project}: val loss {mean:.4f} (mean of {len(mine)}; {low:.4f} to {high:.4f}), "
            f"{seconds['median']:.1f} s (median; {seconds['low']:.1f} to {seconds['high']:.1f})"
        )
    if peer:
        a, b = results["ours"], results["peer"]
        results["time_ratio"] = a["seconds"]["median"] / b["seconds"]["median"]
        results["loss_difference"] = a["loss"]["mean"] - b["loss"]["mean"]
        print(
            f"ours to peer: {results['time_ratio']:.3f} of the time, "
            f"loss {results['loss_difference']:+.4f}"
        )
    write_json(base / "recipe.json", results)


if __name__ == "__main__":
    run(main)
