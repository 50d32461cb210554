"""Programs run as subprocesses, by tiny models, and what their runs leave behind."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from helpers import nursery

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"

# A run of a few seconds: 20 steps of 2 x 4 x 16 tokens. Options given after these win.
TINY = [
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=16",
    "--batch_size=4",
    "--gradient_accumulation_steps=2",
    "--dropout=0.1",
    "--learning_rate=3e-3",
    "--min_lr=3e-4",
    "--warmup_iters=2",
    "--max_iters=20",
    "--lr_decay_iters=20",
    "--eval_iters=2",
    "--eval_interval=10",
    "--device=cpu",
    "--dtype=float32",
    "--compile=False",
]


@dataclass(repr=False)
class Result:
    rc: int
    stdout: str
    stderr: str

    def __repr__(self) -> str:  # what pytest shows where an assertion fails
        return f"exit status {self.rc}\n{self.stdout[-3000:]}\n--- stderr:\n{self.stderr[-3000:]}"


class Payload:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def program_module(path: str) -> ModuleType:
    """A program of the repository as a module, to call in this process; a new one each time."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_in_process", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output_of(folder: Path, monkeypatch, capsys, program: str, *arguments: str) -> str:
    """What a program prints that runs in this process, in a folder."""
    with monkeypatch.context() as changes:
        changes.chdir(folder)
        changes.setattr(sys, "argv", [program, *map(str, arguments)])
        runpy.run_path(str(ROOT / program), run_name="not main")["main"]()
    return capsys.readouterr().out


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without torchrun's variables; one thread; no network."""
    names = set(os.environ) - {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    env = {k: os.environ.get(k, "") for k in names}  # another thread may just take one away
    env.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
    return {**env, **changes}


def run_program(
    args: list[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    input: str | None = None,
    timeout: float = 120,
    program: str = "train.py",
    **options,
) -> Result:
    """Run a program of the repository root in `cwd`; env: changes to the environment."""
    command = [sys.executable, str(ROOT / program), *map(str, args)]
    return run_command(command, cwd, env, input, timeout, **options)


def run_command(command, cwd, env=None, input=None, timeout=120, **options) -> Result:
    if not options and nursery.can_start(command, env or {}):
        return Result(*nursery.start(command, cwd, environment(**(env or {})), input, timeout))
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def train(cwd: Path, out: Path, *options: str, dataset: str = "meta", **keywords) -> Result:
    """A tiny training run into the folder `out`."""
    return run_program(
        [*TINY, f"--dataset={dataset}", f"--out_dir={out}", *options], cwd, **keywords
    )


def torchrun(program: str | Path, *args: str) -> list[str]:
    """The command that runs a program, of the repository root or elsewhere, as two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [sys.executable, *launch, str(ROOT / program), *args]


def run_as_several(
    args: list[str], cwd: Path, program: str | Path = "train.py", count: int = 2
) -> Result:
    """Run a program, of the repository root or elsewhere, as `count` processes that are told of
    each other as torchrun tells them, without the start of torchrun and of torch in each of them.

    The exit status is 0 if all have it; the output is that of the first one, then the others'.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    command = [sys.executable, str(ROOT / program), *map(str, args)]

    def run(rank: int) -> tuple[int, str, str]:
        own = environment(**env, RANK=str(rank), LOCAL_RANK=str(rank))
        return nursery.start(command, cwd, own, None, timeout=120)

    with ThreadPoolExecutor(count) as pool:
        statuses, *said = zip(*pool.map(run, range(count)))
    return Result(next(filter(None, statuses), 0), *("".join(texts) for texts in said))


def train_all(cwd: Path, runs: dict[Path, list[str]], **keywords) -> dict[Path, Result]:
    """Several tiny runs, two at a time: {out_dir: options}. All of them must succeed."""
    with ThreadPoolExecutor(2) as pool:
        started = {out: pool.submit(train, cwd, out, *o, **keywords) for out, o in runs.items()}
    results = {out: future.result() for out, future in started.items()}
    for result in results.values():
        assert result.rc == 0, result
    return results


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[Path, bytes]:
    """What each file under a folder holds."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of each logged training step of a run."""
    return [(row["iter"], row["loss"]) for row in metrics(out) if "loss" in row]


def load(path: Path) -> dict:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def differences(a, b, where: str = "") -> list[str]:
    """Where two checkpoints, or parts of them, differ in any bit; [] when they are equal."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {set(a) ^ set(b)}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: lengths"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a!r} != {b!r}"]


def assert_one_line_error(result: Result, *hints: str, status: tuple[int, ...] = (1, 2)) -> None:
    """The program ended in one line on stderr that has the hints in it."""
    lines = result.stderr.strip().splitlines()
    assert result.rc in status, result
    assert "Traceback" not in result.stdout + result.stderr, result
    assert len(lines) == 1 and lines[0].startswith("error: "), result
    for hint in hints:
        assert hint.lower() in lines[0].lower(), f"no {hint!r} in: {lines[0]}"
