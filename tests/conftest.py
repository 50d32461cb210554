"""What the tests share: tiny data sets, programs run as subprocesses, the --slow option."""

import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import numpy as np
import pytest

# A shell starts what it runs in the background with Ctrl-C ignored, nohup with SIGHUP, and programs
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(ROOT))

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

CHARS = "\n abcdefghijklmnopqrstuvwxyz.,"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)


# ---- data ----


def tiny_text(words: int, seed: int = 0) -> str:
    """Text with a structure that a tiny model learns in a few steps: few letters, few words."""
    rng = np.random.default_rng(seed)
    vocabulary = ["the", "tree", "is", "so", "tall", "it", "sees", "a", "sea", "of", "stars"]
    picked = rng.choice(vocabulary, words)
    ends = rng.choice([" ", " ", " ", ", ", ".\n"], words)
    return "".join(a + b for a, b in zip(picked, ends))


def char_ids(text: str) -> np.ndarray:
    return np.array([CHARS.index(c) for c in text], dtype=np.uint16)


def write_meta(folder: Path, splits: dict[str, np.ndarray], per_split=None, **changes) -> None:
    """A meta.json as the prepare scripts write it, for character data in one file per split.

    per_split: {split: {key: value}}; changes: keys of the whole. Both replace what stands here.
    """
    meta = {
        "format": 1,
        "name": folder.name,
        "dtype": "uint16",
        "vocab_size": len(CHARS),
        "eot": None,
        "tokenizer": {"type": "char", "chars": list(CHARS)},
        "row_length": None,
        "splits": {
            name: {
                "tokens": len(ids),
                "max_id": int(ids.max()),
                "bytes": len(ids),
                "documents": 1,
                "sha256": ["0" * 64],
                "files": [f"{name}.bin"],
                "mask_files": [],
            }
            for name, ids in splits.items()
        },
    }
    for name, change in (per_split or {}).items():
        meta["splits"][name].update(change)
    meta.update(changes)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def make_dataset(folder: Path, kind: str = "meta", seed: int = 0, words: int = 1500) -> Path:
    """A prepared data set of some 6,000 tokens of characters.

    kind: meta (meta.json), nanogpt (meta.pkl), bare (neither: GPT-2's vocabulary), llmc (files
    with a header), shards (train in two files), rows (of 8 tokens, the first 4 are masked).
    """
    folder.mkdir(parents=True)
    train, val = char_ids(tiny_text(words, seed)), char_ids(tiny_text(words // 5, seed + 1))
    splits = {"train": train, "val": val}
    if kind == "rows":
        splits = {name: ids[: len(ids) // 8 * 8] for name, ids in splits.items()}
    for name, ids in splits.items():
        header = b""
        if kind == "llmc":
            head = np.zeros(256, dtype="<i4")
            head[:3] = 20240520, 1, len(ids)
            header = head.tobytes()
        (folder / f"{name}.bin").write_bytes(header + ids.astype("<u2").tobytes())
    if kind == "meta":
        write_meta(folder, splits)
    elif kind == "nanogpt":
        meta = {
            "vocab_size": len(CHARS),
            "itos": dict(enumerate(CHARS)),
            "stoi": {c: i for i, c in enumerate(CHARS)},
        }
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    elif kind == "shards":
        cut = len(train) // 3
        names = ["train_00000.bin", "train_00001.bin"]
        for name, part in zip(names, (train[:cut], train[cut:])):
            (folder / name).write_bytes(part.astype("<u2").tobytes())
        (folder / "train.bin").unlink()
        write_meta(folder, splits, {"train": {"files": names, "sha256": ["0" * 64] * 2}})
    elif kind == "rows":
        masks = {}
        for name, ids in splits.items():
            mask = (np.arange(len(ids)) % 8 >= 4).astype(np.uint8)
            (folder / f"{name}.mask.bin").write_bytes(mask.tobytes())
            masks[name] = {"mask_files": [f"{name}.mask.bin"]}
        write_meta(folder, splits, masks, row_length=8)
    return folder


KINDS = ("meta", "nanogpt", "bare", "llmc", "shards", "rows")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A folder to run programs in, away from the repository; data/ has one data set of each kind.

    Also data/more, a second one with the tokenizer of data/meta. Treat the data as read-only.
    """
    folder = tmp_path_factory.mktemp("workplace")
    for kind in KINDS:
        make_dataset(folder / "data" / kind, kind)
    make_dataset(folder / "data" / "more", "meta", seed=7)
    return folder


# ---- programs ----


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


@pytest.fixture
def out(tmp_path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "out"
