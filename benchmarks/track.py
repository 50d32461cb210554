"""Training runs of ours and of a peer: each is timed, evaluated and saved in the results."""

import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import Columns, Peer, Results, check_minutes
from benchmarks.processes import end_all, heed_signals, running
from bonsai import ROOT
from bonsai.data.dataset import find_folder
from bonsai.system.errors import UserError
from configurator import Config

SEED = 1337  # the constant in the peer's train.py, and the default of ours
COUNTS = ("batch_size", "gradient_accumulation_steps", "max_iters")  # settings read here, too


@dataclass
class Arm:
    """A program with its options, which is run with several seeds."""

    name: str
    project: str  # ours or peer
    steps: int
    options: str  # besides those that Track adds
    whole: bool = False  # with its own evaluations, and judged by the checkpoint that it keeps
    probe: bool = False  # judged by its last training losses: nothing is saved or evaluated


def scaled(rate: float, count: int) -> str:
    """The peer's schedule for a run of `count` steps: warm-up and decay are scaled to it."""
    schedule = f"--lr_decay_iters={count} --warmup_iters={min(100, count // 20)}"
    return f"--learning_rate={rate} --min_lr={rate / 10} {schedule}"


class Track:
    """The folders in which both programs run, and the results so far."""

    def __init__(
        self,
        name: str,
        out: str,
        dataset: str,
        block_size: int,
        minutes: float = 0.0,
        columns: Columns = (),
    ):
        """block_size: tokens of the evaluation's windows. minutes: see Track.run. columns: of the
        table of all runs so far."""
        data = find_folder(dataset)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        text = {split: (data / f"{split}.bin").stat().st_size for split in ("train", "val")}
        about = {"dataset": data.name, "text": text}
        self.results = Results(name, out, device, columns, ("hardware",), **about)
        self.dataset, self.block_size = data.name, block_size
        self.minutes, self.begin, self.place = minutes, time.monotonic(), {}
        for project in ("ours", "peer"):
            self.place[project] = folder = self.results.folder / project
            (folder / "data").mkdir(parents=True, exist_ok=True)
            copy_data(data, folder / "data" / self.dataset)

    def add_peer(self, checkout: Path) -> None:
        Peer(checkout).copy(self.place["peer"])

    def key(self, arm: Arm, seed: int) -> dict:
        return {"name": arm.name, "seed": seed, "steps": arm.steps, "options": arm.options}

    def run(self, arm: Arm, seed: int) -> dict:
        """The row of one run and the evaluation of its last weights, from earlier results if it is
        there. Raises UserError if the minutes are over before a new run."""
        key = self.key(arm, seed)
        if not self.results.find(key):
            check_minutes(self.minutes, self.begin)
        return self.results.measure(key, lambda: self.train(arm, seed))

    def run_together(self, arms: Sequence[Arm], seed: int, at_once: int) -> list[dict]:
        """Like `run`, with several runs at a time; for runs whose seconds do not count."""
        heed_signals()
        with ThreadPoolExecutor(at_once) as pool:
            runs = []
            try:
                for arm in arms:
                    runs.append(pool.submit(self.run, arm, seed))
                return [run.result() for run in runs]
            except BaseException as e:
                for run in runs:
                    run.cancel()
                if not isinstance(e, UserError):  # else running ones may finish, to be saved
                    end_all()
                raise

    def train(self, arm: Arm, seed: int) -> dict:
        folder, count = self.place[arm.project], arm.steps
        target = f"out-{re.sub('[^a-z0-9.]+', '-', arm.name.lower())}-{count}-{seed}"
        times, log = folder / f"{target}.json", folder / f"{target}.log"
        shutil.rmtree(folder / target, ignore_errors=True)
        words = [*arm.options.split(), f"--out_dir={target}", f"--dataset={self.dataset}"]
        words += [f"--max_iters={count}", "--log_interval=1"]
        if not arm.whole:
            words += [f"--eval_interval={count * (10 if arm.probe else 1)}", "--eval_iters=1"]
            words += ["--always_save_checkpoint=True"]
        program, offset = ["train.py"], seed - SEED
        if arm.project == "ours":
            program, offset = [str(ROOT / "train.py"), f"--seed={seed}"], 0
        clock = [str(ROOT / "benchmarks" / "clock.py"), str(times), str(count), str(offset)]
        seconds = launch([*clock, program[0], *words, *program[1:]], folder, log)
        text, ends = log.read_text(encoding="utf-8"), json.loads(times.read_text())
        line = next(line for line in text.splitlines() if "tokens per iteration" in line)
        tokens = count * int(line.split(":")[-1].replace(",", ""))
        # ours says how many tokens it saw: with a batch ramp they are fewer
        if said := re.search(r"^\d+ steps, ([\d,]+) tokens", text, re.M):
            tokens = int(said[1].replace(",", ""))
        seconds = seconds if arm.whole else ends[-1]
        result = {"seconds": seconds, "first": ends[0], "ends": [round(t, 3) for t in ends]}
        result |= {"tokens": tokens, "rate": tokens / seconds}
        losses = re.findall(r"^iter .*?loss ([-\w.]+)", text, re.M)
        result["curve"] = curve = [float(loss) for loss in losses[:count]]
        if arm.probe:
            result["loss"] = statistics.mean(curve[-max(1, count // 10) :])
        else:
            result |= self.evaluate(folder / target)
        shutil.rmtree(folder / target)
        say = f"{arm.name}, seed {seed}, {count} steps: {seconds:.1f} s"
        print(f"{say}, {'last' if arm.probe else 'val'} loss {result['loss']:.4f}", flush=True)
        return result

    def evaluate(self, folder: Path) -> dict:
        """Loss on the whole validation split, by eval.py, and the step of the checkpoint."""
        target = self.results.folder / "eval.json"
        command = [str(ROOT / "eval.py"), f"--init_from={folder / 'ckpt.pt'}", f"--json={target}"]
        command += [f"--dataset={self.dataset}", f"--block_size={self.block_size}"]
        log = folder.parent / f"{folder.name}.eval.log"
        launch([*command, "--batch_size=32"], self.place["ours"], log)
        row = json.loads(target.read_text(encoding="utf-8"))["losses"][0]
        return {"loss": row["loss"], "kept": row["step"]}


def words_of(c: Config, name: str) -> list[str]:
    """The --key=value words in a setting, meant for other programs. Raises UserError for others."""
    for word in (words := c[name].split()):
        if not re.fullmatch(r"--\w+=.*", word):
            raise UserError(
                f"{name}: {word} is not --key=value, as in --{name}='--seed=1 --dropout=0'"
            )
        key, _, value = word[2:].partition("=")
        if key in COUNTS and not value.isdecimal():
            raise UserError(f"{name}: {word} must be a whole number")
    return words


def copy_data(source: Path, target: Path) -> None:
    """Copy a prepared data set to where a program looks for it, unless it is there unchanged."""

    def sizes(folder: Path) -> dict:
        found = (f for f in folder.glob("*") if f.suffix not in (".py", ".md", ".txt"))
        return {f.name: f.stat().st_size for f in found}

    if sizes(target) == sizes(source):
        return
    part = target.with_name(f"{target.name}.part")  # may remain from an interrupted call
    for folder in (part, target):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, part, ignore=lambda _, names: {*names} - {*sizes(source)})
    part.rename(target)


def launch(command: list[str], folder: Path, log: Path) -> float:
    """Run a Python program in a folder; returns its seconds. Raises UserError if it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    begin = time.perf_counter()
    command = [sys.executable, *command]
    with (
        open(log, "w", encoding="utf-8") as f,
        running(command, cwd=folder, env=env, stdout=f, stderr=f) as process,
    ):
        status = process.wait()
    if status:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"a run failed: {' '.join(last)} (see {log})")
    return time.perf_counter() - begin
