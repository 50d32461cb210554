"""What users get wrong, as a table: each mistake is one line that says what to do, and a status.

Every case finds a finished run in out/, and has to leave it as it was.
"""

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.programs import Payload, Result, assert_one_line_error, load, snapshot, train
from helpers.tiny_data import make_dataset

try:
    import resource
except ImportError:  # Windows
    resource = None


@dataclass
class Case:
    """options: of train.py; hints: words the line has in it; prepare: called with the folder."""

    name: str
    options: list[str]
    hints: list[str]
    status: int = 1
    prepare: Callable[[Path], None] | None = None
    limits: dict[str, int] | None = None  # of resources, for this process
    starts: bool = False  # it goes wrong on the way: the run before may have been set aside
    skip: str | None = None


def config_file(text: str) -> Callable[[Path], None]:
    return lambda here: (here / "mine.py").write_text(text)


def unprepared(here: Path) -> None:
    (here / "data" / "unprepared").mkdir()
    (here / "data" / "unprepared" / "prepare.py").write_text("print('prepares')")


def interrupted(here: Path) -> None:
    unprepared(here)
    (here / "data" / "unprepared" / "train.bin.tmp").write_bytes(b"12")


def odd_size(here: Path) -> None:
    make_dataset(here / "data" / "odd", "bare")
    with open(here / "data" / "odd" / "train.bin", "ab") as f:
        f.write(b"1")


def damaged_meta(here: Path) -> None:
    make_dataset(here / "data" / "damaged")
    (here / "data" / "damaged" / "meta.json").write_text("{")


def payload_meta(here: Path) -> None:
    make_dataset(here / "data" / "payload", "nanogpt")
    content = {"vocab_size": 30, "itos": Payload(here / "executed")}
    (here / "data" / "payload" / "meta.pkl").write_bytes(pickle.dumps(content))


def payload_checkpoint(here: Path) -> None:
    state = load(here / "out" / "ckpt.pt")
    torch.save({**state, "config": Payload(here / "executed")}, here / "out" / "bad.pt")


def damaged_checkpoint(here: Path) -> None:
    """The newest file of the run has a wrong byte in it; the one before it is whole."""
    (here / "out" / "last.pt").unlink()
    content = bytearray((here / "out" / "ckpt.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (here / "out" / "ckpt.pt").write_bytes(content)


def text_for_a_checkpoint(here: Path) -> None:
    (here / "out" / "ckpt.pt").write_text("to be, or not to be\n" * 50)


def other_weights(here: Path) -> None:
    state = load(here / "out" / "ckpt.pt")
    state["model"].pop("transformer.wpe.weight")
    torch.save(state, here / "out" / "other.pt")


def larger_ids(here: Path) -> None:
    folder = make_dataset(here / "data" / "larger", "bare")
    np.arange(500, dtype="<u2").tofile(folder / "train.bin")


GIB = 2**30
CASES = [
    # usage
    Case("misspelt key", ["--learning_rat=1"], ["learning_rat", "--learning_rate"], 2),
    Case("misspelt field of the model", ["--n_layr=2"], ["n_layr", "--n_layer"], 2),
    Case("wrong type", ["--max_iters=many"], ["max_iters", "int", "'many'"], 2),
    Case("no value", ["--max_iters"], ["max_iters", "value"], 2),
    Case("one dash", ["-max_iters=2"], ["-max_iters", "dash"], 2),
    Case("missing config file", ["config/train_shakespear.py"], ["train_shakespear"], 2),
    Case(
        "misspelt key in a file",
        ["mine.py"],
        ["mine.py:2", "batch_sise", "batch_size"],
        2,
        config_file("import time\nbatch_sise = 4\n"),
    ),
    Case("wrong type in a file", ["mine.py"], ["mine.py", "int"], 2, config_file("max_iters = []")),
    Case("not Python", ["mine.py"], ["mine.py:1"], 2, config_file("max_iters = = 2")),
    Case("unknown model", ["--model=gtp"], ["gtp", "gpt"], 2),
    # settings that clash, or have no meaning
    Case("heads", ["--n_embd=30", "--n_head=4"], ["n_embd=30", "n_head=4"]),
    Case("no such norm", ["--norm=batchnorm"], ["norm", "rmsnorm"], 2),
    Case("batch_order", ["--batch_order=sorted"], ["batch_order=sorted", "random", "epoch"], 2),
    Case("token_noise", ["--token_noise=1.5"], ["token_noise=1.5", "below 1"], 2),
    Case("optimizer", ["--optimizer=sgd"], ["optimizer=sgd", "adamw"]),
    Case("lr_schedule", ["--lr_schedule=linear"], ["lr_schedule=linear", "cosine", "trapezoid"], 2),
    Case("dtype", ["--dtype=float8"], ["dtype=float8", "bfloat16"], 2),
    Case("device", ["--device=tpu"], ["tpu", "cpu"]),
    Case(
        "no GPU",
        ["--device=cuda"],
        ["cuda", "--device=cpu"],
        skip="this machine has a GPU" if torch.cuda.is_available() else None,
    ),
    Case("batch_size", ["--batch_size=0"], ["batch_size=0"], 2),
    Case("accumulation", ["--gradient_accumulation_steps=0"], ["gradient_accumulation_steps=0"], 2),
    Case("eval_interval", ["--eval_interval=0"], ["eval_interval=0"], 2),
    Case("dropout", ["--dropout=1.5"], ["dropout=1.5"], 2),
    Case("learning_rate", ["--learning_rate=-1"], ["learning_rate", "-1"], 2),
    Case("beta", ["--beta2=1.5"], ["beta2", "1.5"], 2),
    Case("seed", ["--seed=-1"], ["seed=-1"], 2),
    # data
    Case("missing data set", ["--dataset=nowhere"], ["nowhere", "data/"]),
    Case("unprepared", ["--dataset=unprepared"], ["not prepared", "prepare.py"], 1, unprepared),
    Case("interrupted", ["--dataset=unprepared"], ["not prepared", "prepare.py"], 1, interrupted),
    Case("too short", ["--block_size=9000"], ["train", "9000", "block_size"]),
    Case("ids out of range", ["--vocab_size=20"], ["vocabulary", "19"]),
    Case(
        "ids out of range, no meta",
        ["--dataset=larger", "--vocab_size=100"],
        ["vocabulary", "99"],
        1,
        larger_ids,
        starts=True,  # found where they turn up
    ),
    Case("half a token", ["--dataset=odd"], ["train.bin", "whole number"], 1, odd_size),
    Case("damaged meta.json", ["--dataset=damaged"], ["meta.json", "damaged"], 1, damaged_meta),
    Case("payload in meta.pkl", ["--dataset=payload"], ["refused", "meta.pkl"], 1, payload_meta),
    Case("weights of a mixture", ["--dataset=meta:x"], ["'x'", "a:0.7,b:0.3"]),
    Case("tokenizers of a mixture", ["--dataset=meta,bare"], ["different tokenizers"]),
    # checkpoints
    Case("nothing to resume", ["--init_from=resume", "--out_dir=none"], ["no checkpoint", "none"]),
    Case("init_from", ["--init_from=gtp2"], ["checkpoint or folder gtp2", "gpt2"]),
    Case("payload", ["--init_from=out/bad.pt"], ["refused", "bad.pt"], 1, payload_checkpoint),
    Case(
        "damaged checkpoint",
        ["--init_from=resume"],
        ["ckpt.pt", "damaged", "ckpt.prev.pt"],
        1,
        damaged_checkpoint,
    ),
    Case("not a checkpoint", ["--init_from=resume"], ["ckpt.pt"], 1, text_for_a_checkpoint),
    Case("other weights", ["--init_from=out/other.pt"], ["other.pt", "wpe"], 1, other_weights),
    # the machine
    Case(
        "out_dir is a file",
        ["--out_dir=file"],
        ["file", "is no folder"],
        1,
        lambda h: (h / "file").touch(),
    ),
    Case("out_dir cannot be made", ["--out_dir=/proc/nothing"], ["/proc/nothing"]),
    Case(
        "full disk",
        ["--init_from=resume", "--max_iters=30"],
        ["free some space"],
        limits={"RLIMIT_FSIZE": 200_000},  # a checkpoint takes 350 kB
        starts=True,
        skip=None if resource else "limits the size of files, which needs POSIX",
    ),
    Case(
        "full disk from the start",
        ["--init_from=resume", "--max_iters=30"],
        ["free some space"],
        limits={"RLIMIT_FSIZE": 500},  # not even the settings fit
        starts=True,
        skip=None if resource else "limits the size of files, which needs POSIX",
    ),
    Case(
        "out of memory",
        ["--batch_size=80000", "--n_embd=1024"],  # 5 GB for each activation
        ["out of memory", "batch_size", "activation_checkpointing"],
        limits={"RLIMIT_AS": 5 * GIB},
        starts=True,
        skip=None if resource else "limits the memory, which needs POSIX",
    ),
]


@pytest.fixture(scope="module")
def template(workplace, tmp_path_factory) -> Path:
    """A folder with data/ and a run in out/."""
    here = tmp_path_factory.mktemp("template")
    (here / "data").symlink_to(workplace / "data")
    result = train(here, "out", "--gradient_accumulation_steps=1", "--eval_interval=7")
    assert result.rc == 0, result
    return here


def run_case(case: Case, template: Path, here: Path) -> tuple[Path, dict, Result]:
    shutil.copytree(template / "out", here / "out")
    (here / "data").mkdir()
    for folder in (template / "data").iterdir():
        (here / "data" / folder.name).symlink_to(folder.resolve())
    if case.prepare:
        case.prepare(here)
    before = snapshot(here / "out")
    limits = {getattr(resource, k): v for k, v in (case.limits or {}).items()}

    def set_limits():
        for which, value in limits.items():
            resource.setrlimit(which, (value, resource.RLIM_INFINITY))

    options = {"preexec_fn": set_limits} if limits else {}
    return here, before, train(here, "out", *case.options, **options)


@pytest.fixture(scope="module")
def results(request, template, tmp_path_factory):
    """Two programs at a time: they spend their time importing torch."""
    mine = [item for item in request.session.items if item.module is request.module]
    chosen = [item.callspec.params["case"] for item in mine]
    with ThreadPoolExecutor(2) as pool:
        yield {
            case.name: pool.submit(run_case, case, template, tmp_path_factory.mktemp("case"))
            for case in chosen
            if not case.skip
        }


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_mistake(case, results):
    if case.skip:
        pytest.skip(case.skip)
    here, before, result = results[case.name].result()
    assert_one_line_error(result, *case.hints, status=(case.status,))
    assert "iter 1:" not in result.stdout or case.starts
    assert not (here / "executed").exists()
    left = [p.name for p in here.rglob("*") if p.suffix in (".tmp", ".new", ".keep")]
    assert [name for name in left if name != "train.bin.tmp"] == []
    after = snapshot(here / "out")
    if not case.starts:
        assert after == before, "the run that was there has changed"
    else:
        for path in after:
            if path.suffix == ".pt":
                assert load(path)["iter_num"] in (7, 14, 20)
