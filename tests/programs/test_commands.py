"""Every command in the documentation: its program, files and settings are there, and it runs.

The commands of a page run in the order in which they stand, in a copy of the repository, each in
its shortest form: with settings behind its own (SHORT) that leave a step or a token of it.
"""

import ast
import asyncio
import contextlib
import gzip
import io
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from helpers.programs import ROOT
from helpers.settings import PROGRAMS, settings
from helpers.tiny_data import tiny_text

import bonsai.serving.http
from bonsai.models.table import build_model
from bonsai.planning.depth import compute_optimal

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/*/readme.md")])
SHELL = ("", "sh", "bash", "console", "shell")
OTHER = {"cd", "git", "pip", "export", "source", "nvidia-smi", "curl", "mkdir", "ls", "tail", "cat"}
OTHER |= {"lm_eval", "for", "done;"}
START = r"([A-Z_]+=\S* )*(\S*python3?|torchrun|make|pip|bash|curl) "


def commands_of(page: Path) -> list[str]:
    """The commands of a page in order: the lines of its shell blocks, and `python ...` within text.

    Of a block without a language, those lines that begin as a command does; so of what a program
    says of itself.
    """
    if page.suffix == ".py":
        said = ast.get_docstring(ast.parse(page.read_text(encoding="utf-8"))) or ""
        said = re.sub(r"\\\n\s*", "", said)
        return [
            line.strip() for line in said.splitlines() if re.match(r"\s*(python|torchrun) ", line)
        ]
    commands, fence = [], None
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if opening := re.match(r"\s*```(.*)", line):
            fence = opening[1] if fence is None else None
        elif fence is None:
            commands += re.findall(r"`((?:python|torchrun|make) [^`]+)`", line)
        elif fence in SHELL:
            words = line.strip().removeprefix("$ ")
            if words and (fence or re.match(START, words)) and not words.startswith("#"):
                commands.append(words)
    return commands


def commands_of_make(target: str) -> list[str]:
    """The Python programs that `make target` runs, and those that it prints as what to do next."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", text, re.M)[1]
    return [
        f"python {rest}"
        for rest in re.findall(r"(?:\$\(BIN\)|\.venv/bin)/python (.*?)\"?$", recipe, re.M)
    ]


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_in(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("**/*.py" if folder else "*.py"))


PYTHON = [p for name in ("", "bonsai", "data", "projects", "benchmarks") for p in code_in(name)]
COMMANDS = [(short(page), command) for page in PAGES + PYTHON for command in commands_of(page)]


def test_the_readme_has_every_program():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = " ".join(words for path, words in COMMANDS if path == "README.md")
    for name in PROGRAMS:
        assert name in text and name in shown, name
    assert "make quickstart" in shown and "make test" in shown


def arguments_of(words: list[str]) -> list[str]:
    """Those that a program reads here, where there is no run, and no variable of a shell's loop."""
    words = words[: words.index(">")] if ">" in words else words
    words = [word for word in words if word != "..." and not word.endswith("/config.json")]
    return [re.sub(r"\$\w+", "1", word) for word in words]


@pytest.mark.parametrize("path, command", COMMANDS, ids=lambda v: v[:60])
def test_every_command_parses(path, command, monkeypatch, capsys):
    """The program is there, and so are its config files and settings."""
    monkeypatch.chdir(ROOT)
    for part in re.split(r" && | \| ", command):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # of the environment
            words.pop(0)
        if words[:1] == ["srun"]:
            words.pop(0)
        if not words or words[0] in OTHER:
            continue
        first, rest = Path(words[0]).name, words[1:]
        if first == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
            assert all(word in targets for word in rest if "=" not in word)
        elif first in ("python", "python3", "torchrun"):
            if rest[:2] == ["-m", "pytest"] or rest[:2] == ["-m", "pip"]:
                continue
            while rest and not rest[0].endswith(".py"):
                assert rest[0].startswith("--"), command
                rest.pop(0)
            assert rest and (ROOT / rest[0]).is_file(), f"there is no such program: {command}"
            arguments = arguments_of(rest[1:])
            if "configure(" in (ROOT / rest[0]).read_text(encoding="utf-8"):
                try:
                    config = settings(rest[0], arguments)
                    if config.get("decay_lr"):  # else there is no warm-up
                        assert config["warmup_iters"] < config["max_iters"], command
                except SystemExit as e:
                    assert e.code == 0, f"{path}: {command}\n{capsys.readouterr().err}"
        else:
            raise AssertionError(f"a command that this test does not know: {command}")


# ---- they are for the machine where they are read ----

LONG = 2e15  # FLOPs: half an hour on two cores that compute in bfloat16, hours on others
TRAINING = [
    (path, command)
    for path, command in COMMANDS
    if re.match(r"(python|torchrun( --\S+)*) train\.py ", command)
    and not path.endswith(("LOG.md", "BENCHMARKS.md"))
    and "/config.json" not in command  # as long as the run that it makes again
]


def flops_of(command: str) -> float:
    """What a training takes by its settings; with a vocabulary of bytes where they name none."""
    words = shlex.split(command, comments=True)
    c = settings("train.py", arguments_of(words[words.index("train.py") + 1 :]))
    if c.depth:
        c.update(compute_optimal(c.depth, c, c.given, 1))
    if c.eval_only or c.init_from == "resume":
        return 0.0
    with torch.device("meta"):
        sizes = {**c, "vocab_size": c.vocab_size if "vocab_size" in c.given else 257}
        model = build_model(c.model, sizes)
    tokens = c.max_iters * c.batch_size * c.gradient_accumulation_steps * c.block_size
    return tokens * model.flops_per_token(c.block_size)


def where_it_is_said(page: Path, command: str) -> list[str]:
    """The command with its comment, the paragraph above its block, and those that name its file."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    above = text.partition(command)[0].rpartition("```")[0].rstrip().rpartition("\n\n")[2]
    prose = re.split(r"\n\n|\n- ", re.sub(r"```.*?```", "", text, flags=re.S))
    file = re.search(r"config/\w+\.py|--depth|--preset", command)
    named = [part for part in prose if file and file[0] in part]
    return [command, above, *named]


@pytest.mark.parametrize("path, command", TRAINING, ids=lambda v: v[:70])
def test_a_training_of_hours_on_a_cpu_says_that_it_is_for_gpus(path, command):
    if flops_of(command) > LONG:
        assert any("GPU" in text for text in where_it_is_said(ROOT / path, command))


def test_which_commands_are_of_hours():
    """What took minutes on two cores and what did not: the bound lies between them."""
    long = "config/train_gpt2.py, config/fast_gpt2.py, --depth=8, config/train_shakespeare_char.py"
    short = "config/quickstart.py, config/fast_shakespeare_char.py, config/megabyte.py, --depth=2"
    short += ", config/train_shakespeare_char_cpu.py"
    for words in long.split(", "):
        assert flops_of(f"python train.py {words}") > LONG, words
    for words in short.split(", "):
        assert 0 < flops_of(f"python train.py {words}") < LONG, words


# ---- they run ----

TRAIN = "--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --batch_size=2 --max_iters=2 "
TRAIN += "--gradient_accumulation_steps=1 --warmup_iters=0 --lr_decay_iters=2 --eval_interval=2 "
TRAIN += "--eval_iters=1 --device=cpu --dtype=float32 --compile=False --wandb_log=False"
BENCH = "--steps=1 --warmup=1 --n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --batch_size=2 "
BENCH += "--vocab_size=65 --device=cpu"
TINY_MODEL = "--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --batch_size=4"
# What is put after a command's own settings: that of the first pattern that is found in it.
SHORT = {
    "^train.py .*(mega|space)byte": f"{TRAIN} --local_layer=2 --local_embd=16 --local_head=2",
    "^train.py .*finetune_chat.py$": TRAIN.replace("--block_size=16", "--init_from=scratch"),
    "^train.py .*--dataset=mine": f"{TRAIN} --block_size=256",  # for conversations of that length
    "^train.py .*--init_from=out-": "--max_iters=2 --eval_interval=2 --eval_iters=1 --device=cpu",
    "^train.py": TRAIN,
    "^sample.py .*--(interactive|chat)": "--max_new_tokens=4 --device=cpu",
    "^sample.py": "--num_samples=1 --max_new_tokens=4 --device=cpu",
    "^eval.py": "--windows=2 --device=cpu",
    "^serve.py": "--device=cpu --port=0",
    "^export.py": "",
    "^bench.py .*--size=": "",
    "^bench.py": BENCH,
    "^show_tokens.py .*gpt2,my.json": "--tokenizers=byte,my.json",  # OpenAI's is a download
    "^show_tokens.py .*json": "",
    "^show_tokens.py": "--tokenizers=byte",
    "^train_tokenizer.py .*--ranks": "--compare=",
    "^train_tokenizer.py .*sentencepiece": "--vocab_size=300",
    "^train_tokenizer.py .*--curve_png": "--vocab_size=300 --compare= --stats_bytes=1000",
    "^train_tokenizer.py": "--vocab_size=300 --compare= --curve=False --stats_bytes=1000",
    "^data/shakespeare_char/": "--input=my.txt",  # not downloaded
    "^data/python_stdlib/": "--input=library --val_fraction=0.3 --vocab_size=300",
    "^data/bytes/": "--input=library --endings=.py",
    "^data/(custom|chat)/(?!.*--tokenizer)": "--tokenizer=byte",
    "^data/(custom|chat)/": "",
    "^projects/adder": "--steps=1",
    "^projects/rewards": "--digits=1 --base_steps=1 --steps=1",
    "^projects/scaling.* --chinchilla": "",
    "^projects/digits": "--epochs=1",
    "^projects/baby_gpt": "--steps=1",
    "^projects/attention_whatif": f"{TINY_MODEL} --steps=1 --windows=2",
}
# What is not run here, and why. A pattern that nothing matches fails.
NOT_RUN = {
    "^make quickstart .*TORCH_INDEX": "a download; without it its parts are run here",
    "^make test": "these tests",
    "^make matrix": "these tests in part, under other versions of torch; each a download",
    "torchrun .*nproc_per_node=8": "eight GPUs; tests/programs/test_distributed.py has two",
    "config/fast_gpt2": "gigabytes of data; tests/test_house.py runs it with others",
    "config/finetune_shakespeare": "downloads GPT-2; tests/test_house.py runs it from a folder",
    "--init_from=gpt2": "downloads GPT-2",
    "--input=text.xz": "cut from a hundred MB; tests/programs/test_prepare.py reads packed texts",
    "=FOLDER": "a model from elsewhere; tests/programs/test_chat.py runs it with one made here",
    "--hub=": "a download; tests/programs/test_prepare.py runs it with a server of its own",
    "^lm_eval": "a program of its own, and its data; tests/programs/test_serve.py asks as it does",
    "^python benchmarks/": "minutes to hours; each has a test, or a short form, of its own",
    "^python projects/(positions|translate)": "minutes; the projects' tests run them",
    r"^for |^done|\$seed": "six runs of the quickstart, in a loop of a shell",
    "/config.json": "a run that is not here; tests/training/test_start.py makes one again",
}
RUN = [p for p in PAGES if p.parent in (ROOT, ROOT / "docs") or "data" in p.parts]
RUN = [p for p in RUN if p.parent.name not in ("fineweb", "openwebtext", "multi30k", "shakespeare")]


def why_not(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def test_each_reason_not_to_run_a_command_has_one():
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for _, command in COMMANDS), pattern


# What a page takes as done: commands that come before its own.
RUN_OF_CHARACTERS = ["python data/shakespeare_char/prepare.py"]
RUN_OF_CHARACTERS += ["python train.py config/train_shakespeare_char_cpu.py"]
BEFORE = {
    "docs/serving.md": [
        *RUN_OF_CHARACTERS,
        f"{RUN_OF_CHARACTERS[1]} --out_dir=out-small",
        f"{RUN_OF_CHARACTERS[1]} --out_dir=out-big",
    ],
    "docs/reading.md": ["make quickstart"],
    "docs/interop.md": RUN_OF_CHARACTERS,
    "docs/BENCHMARKS.md": [
        RUN_OF_CHARACTERS[0],
        "python train.py config/fast_shakespeare_char_cpu.py --out_dir=out-fast-shakespeare-char",
    ],
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository without data and runs, with the reader's own files that the pages name."""
    folder = tmp_path / "bonsai"
    no = shutil.ignore_patterns("__pycache__", "*.bin", "meta.json", "*.tmp", "out*", "*.png")
    for name in ("bonsai", "benchmarks", "config", "data", "projects", "web"):
        shutil.copytree(ROOT / name, folder / name, ignore=no)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    text = tiny_text(4000)
    for name in ("YOUR.txt", "my.txt", "book.txt", "page.txt"):
        (folder / name).write_text("O God, O God! To be or " + text, encoding="utf-8")
    for name in ("posts", "library"):
        (folder / name).mkdir()
    rows = "".join(json.dumps({"body": text[i : i + 300]}) + "\n" for i in range(0, 9000, 300))
    (folder / "posts" / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    asked = [{"prompt": f"What is {i}?", "completion": f"A number: {i}."} for i in range(100)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    question = {"messages": [{"role": "user", "content": "What is 7?"}]}
    (folder / "questions.jsonl").write_text(json.dumps(question))
    for i in range(20):
        (folder / "library" / f"m{i}.py").write_text(f"def f{i}(x):\n    return {i} * x\n" * 40)
    return folder


@contextlib.contextmanager
def as_a_program(words: list[str], folder: Path, monkeypatch):
    """What a program changes in its process is as it was afterwards."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    path, threads = list(sys.path), torch.get_num_threads()
    with monkeypatch.context() as changes:
        changes.chdir(folder)
        changes.setattr(sys, "argv", words)
        changes.setattr(sys, "stdin", io.StringIO("To be\n"))
        yield
    sys.path[:] = path
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def shortest(command: str) -> list[str]:
    """The words of a command after `python`, with what makes it short."""
    words = shlex.split(command, comments=True)
    assert words.pop(0) == "python", command
    line = " ".join(words)
    added = next((more for pattern, more in SHORT.items() if re.search(pattern, line)), None)
    assert added is not None, f"say in SHORT or NOT_RUN how {command!r} is run"
    return words + shlex.split(added)


def ask(command: str, app, worker) -> None:
    """A curl command, as a request to the server that a command before it would have started."""
    words = shlex.split(command)
    url, body = urlsplit(words[1]), words[words.index("-d") + 1]
    headers = {"Content-Type": "application/json"}

    async def posted() -> httpx.Response:
        worker.start()  # in the loop, as the server does
        try:
            transport = httpx.ASGITransport(app)
            base = f"{url.scheme}://{url.netloc}"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.post(url.path, content=body, headers=headers, timeout=60)
        finally:
            worker.stop()

    answer = asyncio.run(posted())
    assert answer.status_code == 200, f"{command}: {answer.text}"


@pytest.mark.parametrize("page", RUN, ids=short)
def test_every_command_runs(page, copy, monkeypatch, capsys):
    servers = []  # the app and the engine's thread of each
    monkeypatch.setattr(bonsai.serving.http, "serve", lambda *args: servers.append(args[:2]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    todo = [*BEFORE.get(short(page), ()), *commands_of(page)]
    if "make quickstart" in todo:
        where = todo.index("make quickstart")
        todo[where : where + 1] = commands_of_make("quickstart")
    for command in todo:
        if why_not(command) or command.split()[0] in OTHER - {"curl"}:
            continue
        if command.startswith("curl"):
            ask(command, *servers[0])
            continue
        words, status = shortest(command), 0
        with as_a_program(words, copy, monkeypatch):
            try:
                runpy.run_path(str(copy / words[0]), run_name="__main__")
            except SystemExit as e:
                status = e.code
        said = capsys.readouterr()
        assert not status, f"{command}\n{said.out[-2000:]}\n{said.err[-2000:]}"
