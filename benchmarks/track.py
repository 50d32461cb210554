"""Training runs of ours and of a peer side by side: each timed, evaluated and remembered."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from bonsai import ROOT
from bonsai.data.dataset import find_folder
from bonsai.files.jsonfile import write_json
from bonsai.system.errors import UserError
from bonsai.system.provenance import provenance

SEED = 1337  # in the peer's train.py it is a constant; ours has the same


class Track:
    """A folder in which both programs run, and the results so far."""

    def __init__(self, name: str, out: Path, dataset: str, block_size: int, minutes: float = 0.0):
        """block_size: of the windows in which the runs are evaluated. minutes: see Track.run."""
        self.name, self.base = name, out.resolve()
        self.results = self.base / f"{name}.json"
        self.block_size, self.minutes, self.begin = block_size, minutes, time.monotonic()
        data = find_folder(dataset)
        self.dataset = data.name
        self.place = {}
        for project in ("ours", "peer"):
            folder = self.base / project
            (folder / "data").mkdir(parents=True, exist_ok=True)
            link = folder / "data" / self.dataset
            if not link.exists():
                shutil.copytree(data, link, ignore=shutil.ignore_patterns("*.py", "*.md", "*.txt"))
            self.place[project] = folder
        found = self.results.exists()
        self.runs = json.loads(self.results.read_text())["runs"] if found else []

    def add_peer(self, checkout: Path) -> None:
        for name in ("train.py", "model.py", "configurator.py"):
            if not (checkout / name).is_file():
                raise UserError(
                    f"peer={checkout} has no {name}: give the folder of a nanoGPT checkout"
                )
            shutil.copyfile(checkout / name, self.place["peer"] / name)
        shutil.copytree(checkout / "config", self.place["peer"] / "config", dirs_exist_ok=True)

    def run(self, name: str, project: str, seed: int, count: int, options: str) -> dict:
        """One run and the evaluation of its last weights, or what is known of it already.

        Raises UserError where the limit of minutes is over before a run that is still to be made.
        """
        key = {"name": name, "seed": seed, "steps": count, "options": options}
        for known in self.runs:
            if all(known[k] == v for k, v in key.items()):
                return known
        if self.minutes and time.monotonic() - self.begin > 60 * self.minutes:
            raise UserError(f"{self.minutes:g} minutes are over: the same command goes on")
        folder = self.place[project]
        target = f"out-{re.sub('[^a-z0-9.]+', '-', name.lower())}-{count}-{seed}"
        times = folder / f"{target}.json"
        words = [*options.split(), f"--max_iters={count}", f"--out_dir={target}"]
        words += [f"--eval_interval={count}", "--eval_iters=1", "--always_save_checkpoint=True"]
        words += ["--log_interval=1", f"--dataset={self.dataset}"]
        if project == "ours":
            words += [f"--seed={seed}"]
            program, offset = [str(ROOT / "train.py")], 0
        else:
            program, offset = ["train.py"], seed - SEED
        clock = [str(ROOT / "benchmarks" / "clock.py"), str(times), str(count), str(offset)]
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        log = folder / f"{target}.log"
        with open(log, "w", encoding="utf-8") as f:
            command = [sys.executable, *clock, *program, *words]
            done = subprocess.run(command, cwd=folder, env=env, stdout=f, stderr=f, check=False)
        text = log.read_text(encoding="utf-8")
        if done.returncode:
            raise UserError(f"{name} failed with seed {seed}: see {log}")
        ends = json.loads(times.read_text())
        result = {**key, "seconds": ends[-1], "first": ends[0], "ends": [round(t, 3) for t in ends]}
        result["curve"] = [
            float(line.split("loss ")[1].split(",")[0])
            for line in text.splitlines()
            if line.startswith("iter ") and "loss " in line
        ][:count]
        line = next(line for line in text.splitlines() if "tokens per iteration" in line)
        result["tokens"] = count * int(line.split(":")[-1].replace(",", ""))
        result["rate"] = result["tokens"] / result["seconds"]
        result["loss"] = self.evaluate(folder / target)
        shutil.rmtree(folder / target)
        self.runs.append(result)
        self.save()
        say = f"{name}, seed {seed}, {count} steps: {result['seconds']:.1f} s"
        print(f"{say}, val loss {result['loss']:.4f}", flush=True)
        return result

    def evaluate(self, folder: Path) -> float:
        """Loss on the whole validation split, by eval.py."""
        target = self.base / "eval.json"
        command = [str(ROOT / "eval.py"), f"--init_from={folder / 'ckpt.pt'}"]
        command += [f"--dataset={self.dataset}", f"--block_size={self.block_size}"]
        command += [f"--json={target}", "--batch_size=32"]
        done = subprocess.run(
            [sys.executable, *command], cwd=self.place["ours"], capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"eval.py failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        return json.loads(target.read_text(encoding="utf-8"))["losses"][0]["loss"]

    def save(self, **more) -> None:
        head = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        write_json(self.results, {**head, "name": self.name, **more, "runs": self.runs})
