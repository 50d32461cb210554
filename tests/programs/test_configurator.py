"""Settings: config files, the command line, models, errors and --help."""

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import configurator
from bonsai import __version__
from bonsai.system.errors import UserError
from configurator import Config, configure, describe, model_fields

ROOT = Path(configurator.__file__).resolve().parent

# nanoGPT's 33 settings of train.py, in its order, with stand-ins for what its hardware decides.
TRAIN = '''
"""
A stand-in for a training program.

It trains nothing.
"""
import math
from os import sep

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out'
eval_interval = 2000
log_interval = 1  # how often to print
eval_iters = 200
eval_only = False  # if True, stop after the first evaluation
always_save_checkpoint = True
init_from = 'scratch'  # 'scratch', 'resume' or 'gpt2*'
# wandb logging
wandb_log = False
wandb_project = 'owt'
wandb_run_name = 'gpt2'
# data
dataset = 'openwebtext'
gradient_accumulation_steps = 5 * 8
batch_size = 12  # examples per micro-step
block_size = 1024
# model
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0  # -1 is not # allowed
bias = False
# optimizer
learning_rate = 6e-4
max_iters = 600000
weight_decay = 1e-1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

decay_lr = True
warmup_iters = 2000
lr_decay_iters = 600000
min_lr = 6e-5
# ---- hardware ----
backend = 'auto'  # 'nccl', 'gloo'
device = 'auto'
dtype = 'auto'
compile: bool | str = 'auto'  # auto: where it is worth it [auto | on | off]
seed: int | None = None  # None: a new one every time
_private = 1
TABLE_SIZE = 3
table = {'not': 'simple'}
ratio: 'int | float' = 1
shapes: list[int] = [1]
'''.lstrip()

CALL = """
from configurator import configure
config = configure(globals())
"""

AFTER = """
after_the_call = 1
"""

NANOGPT_NAMES = """
out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log
wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer
n_head n_embd dropout bias learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr
warmup_iters lr_decay_iters min_lr backend device dtype compile
"""


@dataclass
class Base:
    # Shape
    n_layer: int = 12  # blocks
    width: int = 768


@dataclass
class GPTConfig(Base):
    # Choices
    norm: str = "layernorm"  # or rmsnorm
    bias: bool = True  # in norms and linears
    n_kv_head: int | None = None
    pattern: tuple[int, ...] = ()  # not a simple type: no setting
    vocab_size: int = 50304


@dataclass
class PatchConfig:
    n_layer: "int" = 6  # global blocks
    patch_size: "int" = 8  # bytes
    patch_loss: "bool | str" = "auto"


MODELS = {"gpt": GPTConfig, "patch": PatchConfig}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder, as rank 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def namespace(source: str, name: str = "program.py") -> dict:
    """The globals of a program with this source, as they are when it calls configure."""
    path = Path(name).resolve()
    path.write_text(source, encoding="utf-8")
    names = {"__file__": str(path), "__name__": "__main__"}
    exec(compile(source, str(path), "exec", dont_inherit=True), names)
    return names


def train(*argv: str, source: str = TRAIN, models=None) -> Config:
    return configure(namespace(source), models, argv)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return name


def error(capsys, *argv: str, **kwargs) -> str:
    """The one line on stderr that these arguments end in, with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train(*argv, **kwargs)
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").strip()


# --- discovery ---


def test_settings_are_the_simple_names_above_the_call():
    names = list(train(source=TRAIN))
    assert names == [*NANOGPT_NAMES.split(), "seed", "ratio"]


def test_names_below_the_call_and_imported_names_are_no_settings():
    source = f"from os import sep\nimport math\na = 1\n{CALL}{AFTER}".replace("config =", "_c =")
    ns = namespace(source)
    assert list(configure(ns, argv=[])) == ["a"]
    assert list(ns["_c"]) == ["a"]


def test_call_inside_a_function_still_bounds_the_settings():
    source = """
        import configurator
        a = 1
        def main():
            config = configurator.configure(globals(), argv=[])
            return list(config)
        b = 2
        result = main()
    """
    assert namespace(textwrap.dedent(source))["result"] == ["a"]


def test_defaults_come_from_the_program_not_from_its_text():
    config = train()
    assert config["gradient_accumulation_steps"] == 40
    assert config["beta2"] == 0.95
    assert config["seed"] is None
    assert config.given == set() and config.diff() == {} and config.sources == []


def test_annotations_of_the_future():
    source = "from __future__ import annotations\ncompile: bool | str = 'auto'\n"
    assert train("--compile", source=source)["compile"] is True


def test_nothing_is_written_back():
    ns = namespace(TRAIN)
    before = dict(ns)
    config = configure(ns, argv=["--batch_size=4", "--dropout=1"])
    assert config.batch_size == config["batch_size"] == 4
    assert config.dropout == 1.0 and type(config.dropout) is float
    assert ns == before


# --- values on the command line ---


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--batch_size=32"], "batch_size", 32),
        (["--batch_size", "32"], "batch_size", 32),
        (["--batch-size=32"], "batch_size", 32),
        (["--batch-size", "32"], "batch_size", 32),
        (["--batch_size=1_000"], "batch_size", 1000),
        (["--max_iters=6e5"], "max_iters", 600000),
        (["--max_iters=1e3"], "max_iters", 1000),
        (["--max_iters", "-1"], "max_iters", -1),
        (["--max_iters=-1"], "max_iters", -1),
        (["--dropout=0"], "dropout", 0.0),
        (["--dropout", "-0.5"], "dropout", -0.5),
        (["--learning_rate=3e-4"], "learning_rate", 3e-4),
        (["--ratio=2"], "ratio", 2),
        (["--ratio=0.5"], "ratio", 0.5),
        # strings stay as typed
        (["--out_dir=123"], "out_dir", "123"),
        (["--wandb_run_name=007"], "wandb_run_name", "007"),
        (["--wandb_run_name=1e3"], "wandb_run_name", "1e3"),
        (["--wandb_run_name=True"], "wandb_run_name", "True"),
        (["--wandb_run_name=None"], "wandb_run_name", "None"),
        (["--wandb_run_name=[1, 2]"], "wandb_run_name", "[1, 2]"),
        (["--wandb_run_name='hi'"], "wandb_run_name", "'hi'"),
        (['--wandb_run_name="To be"'], "wandb_run_name", '"To be"'),
        (["--wandb_run_name=\\n"], "wandb_run_name", "\\n"),
        (["--wandb_run_name=a b"], "wandb_run_name", "a b"),
        (["--wandb_run_name="], "wandb_run_name", ""),
        (["--wandb_run_name=a=b==c"], "wandb_run_name", "a=b==c"),
        (["--wandb_run_name", "a=b"], "wandb_run_name", "a=b"),
        (["--wandb_run_name", "-"], "wandb_run_name", "-"),
        (["--dataset=a:0.7,b:0.3"], "dataset", "a:0.7,b:0.3"),
        (["--device=cuda:1"], "device", "cuda:1"),
        (["--dtype=bfloat16"], "dtype", "bfloat16"),
        # booleans
        (["--eval_only"], "eval_only", True),
        (["--eval-only"], "eval_only", True),
        (["--eval_only=True"], "eval_only", True),
        (["--eval_only=true"], "eval_only", True),
        (["--eval_only=1"], "eval_only", True),
        (["--eval_only=yes"], "eval_only", True),
        (["--eval_only", "True"], "eval_only", True),
        (["--decay_lr=False"], "decay_lr", False),
        (["--decay_lr=false"], "decay_lr", False),
        (["--decay_lr=0"], "decay_lr", False),
        (["--decay_lr=no"], "decay_lr", False),
        (["--decay_lr", "False"], "decay_lr", False),
        (["--no-decay_lr"], "decay_lr", False),
        (["--no-decay-lr"], "decay_lr", False),
        (["--no_decay_lr"], "decay_lr", False),
        # several types
        (["--compile"], "compile", True),
        (["--no-compile"], "compile", False),
        (["--compile=False"], "compile", False),
        (["--compile", "False"], "compile", False),
        (["--compile=auto"], "compile", "auto"),
        (["--compile", "auto"], "compile", "auto"),
        (["--seed=7"], "seed", 7),
        (["--seed=7", "--seed=None"], "seed", None),
        # the last one counts
        (["--batch_size=1", "--batch_size=2"], "batch_size", 2),
    ],
)
def test_command_line_values(argv, name, value):
    config = train(*argv)
    assert config[name] == value and type(config[name]) is type(value)
    assert config.given == {name}


def test_a_flag_leaves_what_follows_alone():
    file = write("config/small.py", "batch_size = 3\n")
    config = train("--eval_only", file, "--compile", "--wandb_log", "False")
    assert config.diff() == {"eval_only": True, "batch_size": 3, "compile": True}
    assert config.given == {"eval_only", "batch_size", "compile", "wandb_log"}


def test_a_config_imports_what_is_beside_it(folder):
    """Wherever the program was called; one of the same name as a module that is known does not take
    its place."""
    write("studies/shared.py", "batch_size = 3\ndropout = 0.1\n_WIDTHS = [8, 16]\n")
    write("studies/json.py", "raise RuntimeError\n")
    text = "import json\nfrom shared import *\nfrom shared import _WIDTHS\nmax_iters = _WIDTHS[1]\n"
    write("studies/wide.py", text)
    before = list(sys.path)
    try:
        assert train("studies/wide.py").diff() == {
            "batch_size": 3,
            "dropout": 0.1,
            "max_iters": 16,
        }
    finally:
        sys.modules.pop("shared", None)
    assert sys.path == before


def test_the_config_json_of_a_run_gives_all_its_settings(folder, capsys):
    run = train("--batch_size=3", "--dropout=0.5")
    write("run/config.json", json.dumps(run))
    again = train("--seed=5", "run/config.json", "--out_dir=again")
    assert again == run | {"out_dir": "again"}  # seed was another before the file
    assert again.given == {"batch_size", "dropout", "seed", "out_dir"}  # and no other defaults
    write("run/config.json", json.dumps(run | {"n_layr": 2}))
    assert "config.json: unknown setting n_layr; did you mean" in error(capsys, "run/config.json")
    write("run/config.json", "[1]")
    assert "config.json is not a JSON object" in error(capsys, "run/config.json")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batch_size=many"], "--batch_size expects int, got 'many'; e.g. --batch_size=12"),
        (["--batch_size=1.5"], "--batch_size expects int, got '1.5'"),
        (["--batch_size=True"], "--batch_size expects int, got 'True'"),
        (["--batch_size="], "--batch_size expects int, got ''"),
        (["--batch_size=[1"], "--batch_size expects int, got '[1'"),
        (["--batch_size='4'"], "--batch_size expects int"),
        (["--dropout=high"], "--dropout expects float, got 'high'; e.g. --dropout=0.0"),
        (["--dropout=None"], "--dropout expects float, got 'None'"),
        (["--dropout=True"], "--dropout expects float, got 'True'"),
        (["--eval_only=2"], "--eval_only expects bool, got '2'; e.g. --eval_only=False"),
        (["--eval_only=maybe"], "--eval_only expects bool, got 'maybe'"),
        (["--seed=x"], "--seed expects int or None, got 'x'; e.g. --seed=1"),
        (["--ratio=x"], "--ratio expects int or float, got 'x'"),
        (["--dropout=1" + 400 * "0"], "--dropout expects float, got '1000"),
        (["--batch_size=1e400"], "--batch_size expects int, got '1e400'"),
    ],
)
def test_wrong_type_on_the_command_line(capsys, argv, words):
    assert words in error(capsys, *argv)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batchsize=4"], "unknown setting --batchsize; did you mean --batch_size? (python"),
        (["--batchsize", "4"], "unknown setting --batchsize; did you mean --batch_size?"),
        (["--Batch_Size=4"], "unknown setting --Batch_Size; did you mean --batch_size?"),
        (["--n-layers=4"], "unknown setting --n-layers; did you mean --n_layer?"),
        (["--batchsize=4"], "(python train.py --help lists all)"),
        (["--zzz=4"], "unknown setting --zzz (python train.py"),
        (["--config=config/a.py"], "--config: a config file is given by itself, as config/a.py"),
        (["--config", "config/a.py"], "--config: a config file is given by itself, as config/a.py"),
        (["--config"], "unknown setting --config (python train.py"),
        (["--"], "unknown setting -- "),
        (["--=4"], "unknown setting -- "),
        (["--_private=4"], "unknown setting --_private"),
        (["--TABLE_SIZE=4"], "unknown setting --TABLE_SIZE"),
        (["--table=4"], "unknown setting --table"),
        (["--no-batch_size"], "unknown setting --no-batch_size"),
        (["--no-compile=True"], "unknown setting --no-compile"),
        (["--batch_size"], "--batch_size needs a value, for example --batch_size=12"),
        (["--batch-size", "--eval_only"], "--batch-size needs a value, for example --batch_size"),
        (["--seed"], "--seed needs a value, for example --seed=1"),
        (["batch_size=4"], "batch_size=4 lacks two dashes in front: --batch_size=4"),
        (["-batch_size=4"], "-batch_size=4 lacks two dashes in front: --batch_size=4"),
        (["batch_sise=4"], "unknown setting batch_sise=4; did you mean --batch_size?"),
        (["-batch_sise=4"], "unknown setting -batch_sise=4; did you mean --batch_size?"),
        (["-h=1"], "unknown setting -h=1 (--help lists all)"),
        (["-q"], "-q is not an option: settings are given as --key=value, --help lists them"),
        (["--compile=maybe"], "--compile=maybe is not one of auto, on, off"),
        (["--compile=atuo"], "--compile=atuo is not one of auto, on, off; did you mean auto?"),
        (["--compile", "nowhere"], "no config file nowhere"),
    ],
)
def test_usage_errors(capsys, argv, words):
    assert words in error(capsys, *argv)


# --- config files ---


def test_files_and_options_apply_left_to_right():
    file = write("config/small.py", "batch_size = 3\ndropout = 0.1\n")
    assert train(file, "--batch_size=4")["batch_size"] == 4
    assert train("--batch_size=4", file)["batch_size"] == 3
    other = write("other.py", "batch_size += 1\n")
    assert train(file, other, other)["batch_size"] == 5


def test_a_file_sees_the_settings_so_far():
    file = write("run.py", "max_iters = 2 * warmup_iters\nlr_decay_iters = max_iters\n")
    assert train(file)["max_iters"] == 4000
    config = train("--warmup_iters=100", file)
    assert (config["max_iters"], config["lr_decay_iters"]) == (200, 200)
    assert train(file, "--warmup_iters=100")["max_iters"] == 4000


def test_a_file_of_nanogpts_kind():
    file = write(
        "config/finetune.py",
        """
        # tune a big model on plays
        # launch with torchrun

        import time
        from math import sqrt

        out_dir = 'out-plays'
        wandb_run_name = 'ft-' + str(time.time())
        init_from = 'gpt2-xl' # the largest
        always_save_checkpoint = False # even though this is not the default
        eval_only = False
        # 12 * 1024 * 5 * 8
        gradient_accumulation_steps = 5 * 8
        learning_rate = 1e-3 / sqrt(4)
        max_iters = 6e4
        weight_decay = 1
        compile = False # no compiler here
        # device = 'mps'
        """,
    )
    config = train(file)
    assert config["wandb_run_name"].startswith("ft-1")
    assert config["learning_rate"] == 5e-4
    assert config["max_iters"] == 60000 and type(config["max_iters"]) is int
    assert config["weight_decay"] == 1.0 and type(config["weight_decay"]) is float
    assert config["compile"] is False
    assert config["device"] == "auto"
    # what a file sets to its default was still given
    assert {"eval_only", "gradient_accumulation_steps"} <= config.given
    assert "eval_only" not in config.diff()


def test_what_nanogpt_has_imported_is_there_without_an_import():
    """Its config files are executed in the middle of its train.py."""
    file = write(
        "config/run.py",
        """
        wandb_run_name = 'gpt2 - ' + str(time.time())
        out_dir = os.path.join('out', 'a')
        dtype = 'bfloat16' if torch.backends.mps.is_available() else 'float32'
        learning_rate = math.sqrt(float(np.float64(4)))
        def _steps():
            return pickle.loads(pickle.dumps(len(sys.path) and 7))
        max_iters = _steps()
        """,
    )
    config = train(file)
    assert config.wandb_run_name.startswith("gpt2 - 1") and config.max_iters == 7
    assert config.out_dir == os.path.join("out", "a") and config.learning_rate == 2.0
    names = {"wandb_run_name", "out_dir", "dtype", "learning_rate", "max_iters"}
    assert config.given == names
    over = train(write("config/over.py", f"exec(open({file!r}).read())\nmax_iters = 9\n"))
    assert over.given == names and over.max_iters == 9 and over.learning_rate == 2.0
    assert train(write("config/own.py", "time = 3\nmax_iters = time\n")).max_iters == 3


def test_helpers_are_ignored():
    file = write(
        "helpers.py",
        """
        import os as system
        from pathlib import Path
        gpus = 8
        tokens = 2**19
        sizes = [4, 5]
        local = 3
        unused_but_private = _seconds = 60
        if unused_but_private:
            pass

        def per_gpu():
            return tokens // gpus

        class Nothing:
            inner = 1

        warmup_iters = sum(size * local for size in sizes)
        batch_size = per_gpu() // 1024
        out_dir = f"out-{tokens}"
        for step in range(3):
            max_iters = step
        """,
    )
    config = train(file)
    assert config["batch_size"] == 64 and config["warmup_iters"] == 27
    assert config["out_dir"] == "out-524288" and config["max_iters"] == 2
    assert config.given == {"batch_size", "warmup_iters", "out_dir", "max_iters"}


def test_only_what_runs_was_given():
    file = write("run.py", "if batch_size > 12:\n    dropout = 0.0\neval_iters = 200\n")
    assert train(file).given == {"eval_iters"}
    assert train("--batch_size=13", file).given == {"batch_size", "dropout", "eval_iters"}


def test_a_file_may_run_another_or_set_globals():
    write("base.py", "batch_size = 3\ndropout = 0.0\n")
    file = write(
        "run.py",
        """
        from pathlib import Path
        exec(Path(__file__).with_name("base.py").read_text())

        def choose():
            global n_layer
            n_layer = 2 * batch_size
        choose()
        """,
    )
    config = train(file)
    assert config["batch_size"] == 3 and config["n_layer"] == 6
    assert config.given == {"batch_size", "dropout", "n_layer"}


def test_a_file_runs_in_a_namespace_of_its_own():
    ns = namespace(TRAIN)
    file = write("run.py", "helper = 2\nbatch_size = helper\nassert __name__ == 'config'\n")
    configure(ns, argv=[file])
    assert "helper" not in ns and ns["__name__"] == "__main__"


def test_a_file_name_may_hold_an_equals_sign():
    assert train(write("lr=3.py", "learning_rate = 3.0\n"))["learning_rate"] == 3.0


def test_an_empty_file_is_named_nowhere():
    assert train(write("empty.py", "# nothing yet\n")).sources == []


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "batch_size = 3\n\nlearnin_rate = 3\n",
            "run.py:3: unknown setting learnin_rate; did you mean learning_rate?",
        ),
        ("zzz = 3\n", "run.py:1: unknown setting zzz (a helper's name may start with _)"),
        ("xs = [1]\n", "run.py:1: unknown setting xs"),
        (
            "batch_size = 'four'\n",
            "run.py: batch_size expects int, got 'four'; e.g. batch_size = 1",
        ),
        ("batch_size = '4'\n", "run.py: batch_size expects int, got '4'"),
        ("batch_size = 1.5\n", "run.py: batch_size expects int, got 1.5"),
        ("batch_size = True\n", "run.py: batch_size expects int, got True"),
        ("dropout = None\n", "run.py: dropout expects float, got None; e.g. dropout = 0.0"),
        ("out_dir = 5\n", "run.py: out_dir expects str, got 5; e.g. out_dir = 'out'"),
        ("dropout = 10**400\n", "run.py: dropout expects float, got 1000"),
        ("eval_only = 'maybe'\n", "run.py: eval_only expects bool, got 'maybe'"),
        ("compile = 'maybe'\n", "run.py: compile=maybe is not one of auto, on, off"),
        ("compile = 0.5\n", "run.py: compile expects bool or str, got 0.5; e.g. compile = 'auto'"),
        ("import math as compile\n", "run.py: compile expects bool or str, got <module"),
        ("\nx = 1 / 0\n", "run.py:2: ZeroDivisionError: division by zero"),
        ("a = 1\nbatch_size = (\n", "run.py:2: SyntaxError: '(' was never closed"),
        ("a = 1\n  b = 1\n", "run.py:2: IndentationError: unexpected indent"),
        ("batch_size = batchsize\n", "run.py:1: NameError: name 'batchsize' is not defined"),
        ("def f():\n    open('nowhere')\nf()\n", "run.py:2: FileNotFoundError"),
        ("raise ValueError('two\\nlines')\n", "run.py:1: ValueError: two lines"),
        ("import json\njson.loads('')\n", "run.py:2: JSONDecodeError"),
        ("import sys\nsys.exit()\n", "run.py:2: SystemExit"),
        ("batch_size: 4\n", "run.py:1: batch_size: 4 sets nothing: settings are given as NAME"),
        ('{"batch_size": 4}\n', "run.py:1: {'batch_size': 4} sets nothing"),
        ("seed = 1\nbatch_size == 4\n", "run.py:2: batch_size == 4 sets nothing"),
        ("batch_size = 4\0", "run.py is not UTF-8 text: save it as UTF-8"),
    ],
)
def test_mistakes_in_a_file(capsys, text, words):
    assert words in error(capsys, write("run.py", text))


def test_statements_that_do_something_may_stand_in_a_file():
    text = '"""What it is."""\n...\nprint("hello")\n[print(i) for i in ()]\nbatch_size: int = 4\n'
    assert train(write("run.py", text)).batch_size == 4


@pytest.mark.parametrize(
    "text",
    [
        "batch_size = 4",
        "batch_size: int = 4",
        "batch_size, n_layer = 4, 2",
        "[n_layer, *_rest, batch_size] = 1, 2, 3, 4",
        "batch_size = seed = 4",
        "batch_size -= 8",
        "(batch_size := 4)",
        "_sum = sum((batch_size := n) for n in range(5))",
        "for batch_size in range(5): pass",
        "while batch_size > 4: batch_size -= 1",
        "import contextlib\nwith contextlib.nullcontext(4) as batch_size: pass",
        "match [1, 4]:\n    case [_, batch_size]: pass",
        "if True: batch_size = 4",
        "try: batch_size = 4\nfinally: pass",
        "from base import *",
        "from base import batch_size",
        "globals()['batch_size'] = 4",
        "locals()['batch_size'] = 4",
        "exec('batch_size = 4')",
        "def _set():\n    global batch_size\n    batch_size = 4\n_set()",
        # names of settings in a class or a function that is used
        "class Few:\n    batch_size = 4\nbatch_size = Few.batch_size",
        "def few(n_layer):\n    seed = n_layer + 1\n    return seed\nbatch_size = few(3)",
        "class Few:\n    def of(self):\n        seed = 4\n        return seed\n"
        "batch_size = Few().of()",
        "def twice(f):\n    return f() * 2\n@twice\ndef two():\n    seed = 2\n    return seed\n"
        "batch_size = two",
    ],
)
def test_every_way_of_python_to_set_a_setting(text, folder, monkeypatch):
    write("base.py", "batch_size = 4\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "base", raising=False)
    config = train(write("run.py", f"{text}\n"))
    assert config.batch_size == 4 and "batch_size" in config.given


@pytest.mark.parametrize(
    "text, words",
    [
        ("def f():\n    batch_size = 4", "run.py:1: batch_size in function f sets nothing"),
        ("seed = 1\nclass batch_size: pass", "batch_size expects int, got <class"),
        ("def dropout(): return 0.1", "run.py: dropout expects float, got <function dropout"),
        (
            "max_iter = 500\nlr_decay_iters = max_iter",
            "run.py:1: unknown setting max_iter; did you mean max_iters?",
        ),
    ],
)
def test_what_would_set_nothing_is_a_mistake(capsys, text, words):
    assert words in error(capsys, write("run.py", f"{text}\n"))


def test_helpers_may_be_deleted_and_be_named_nearly_as_what_is_set():
    text = "layers = n_layers = 3\nn_layer = n_layers + layers\ndel layers\n"
    assert train(write("run.py", text)).n_layer == 6


def test_a_text_is_no_config_file(capsys):
    Path("my.txt").write_text("To be, or not")
    hint = "my.txt:1: SyntaxError: invalid syntax (arguments without -- are config files, in Python"
    assert hint in error(capsys, "my.txt")


def test_a_binary_file_is_one_line(capsys):
    Path("ckpt.pt").write_bytes(b"PK\x03\x04\x00\xff\xfe")
    assert error(capsys, "ckpt.pt").startswith("ckpt.pt")


def test_missing_file_names_the_nearest(capsys, folder):
    write("config/train_plays.py", "")
    write("config/eval_plays.py", "")
    message = error(capsys, "config/train_play.py")
    assert message.startswith("no config file config/train_play.py; did you mean config/train_pl")
    assert "did you mean config/train_plays.py" in error(capsys, "train_plays")
    message = error(capsys, "zzz.py")
    assert "config/ has" in message and "config/eval_plays.py" in message
    assert "no config file config;" in error(capsys, "config")


def test_the_folder_of_a_run_is_no_config_file(capsys, folder):
    write("out-mine/ckpt.pt", "")
    message = error(capsys, "out-mine")
    assert message == "out-mine is not a config file but a run's folder: give --out_dir=out-mine"


def test_missing_file_without_a_config_folder(capsys, monkeypatch, folder):
    monkeypatch.setattr(configurator, "ROOT", folder / "elsewhere")
    expected = "no config file zzz.py; values are given as --key=value"
    assert error(capsys, "zzz.py") == expected


# --- models ---


def test_fields_of_the_chosen_model_are_settings():
    source = TRAIN.replace("n_layer = 12\n", "model = 'gpt'\n")
    ns = namespace(source)
    config = configure(ns, MODELS, ["--n_layer=2", "--norm=rmsnorm", "--n_kv_head=2"])
    assert config["n_layer"] == 2 and config["norm"] == "rmsnorm" and config["width"] == 768
    assert config["bias"] is False, "the program's default goes first"
    assert "patch_size" not in config and "pattern" not in config
    assert "n_layer" not in ns and "norm" not in ns
    fields = model_fields(config, GPTConfig)
    assert list(fields) == ["n_layer", "width", "norm", "bias", "n_kv_head", "vocab_size"]
    assert GPTConfig(**fields) == GPTConfig(2, 768, "rmsnorm", False, 2)


PROGRAM = "model = 'gpt'  # which one\nbias = False\nsteps = 5\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["--model=patch", "--patch_size=4"],
        ["--patch_size=4", "--model=patch"],
        ["patch.py"],
        ["--n_layer=6", "patch.py"],
        ["--patch_size=9", "patch.py"],
    ],
)
def test_another_model_chosen_anywhere(argv):
    write("patch.py", "model = 'patch'\npatch_size = 4\n")
    config = train(*argv, source=PROGRAM, models=MODELS)
    fields = {"n_layer": 6, "patch_size": 4, "patch_loss": "auto"}
    assert model_fields(config, PatchConfig) == fields
    assert config.diff() == {"model": "patch", "patch_size": 4}
    assert list(config) == ["model", "bias", "steps", "n_layer", "patch_size", "patch_loss"]


def test_a_field_does_not_silently_have_the_default_of_a_setting(capsys):
    @dataclass
    class Deep:
        depth: int = 4
        steps: int = 5  # as in the program

    source = PROGRAM + "depth = 0\n"
    assert train(source=source, models=MODELS).depth == 0  # not the chosen model's
    with pytest.raises(SystemExit):
        train("--model=deep", source=source, models={**MODELS, "deep": Deep})
    assert "Deep has a field depth, which is a setting of the program" in capsys.readouterr().err


def test_string_annotations_of_a_model():
    config = train("--model=patch", "--patch_loss", source=PROGRAM, models=MODELS)
    assert config["patch_loss"] is True


def test_a_file_sees_the_fields_of_the_model_chosen_before_it():
    file = write("run.py", "steps = 10 * patch_size\n")
    config = train("--model=patch", file, source=PROGRAM, models=MODELS)
    assert config["steps"] == 80


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--patch_size=4"],
            "--patch_size is a setting of model patch, not of gpt; "
            "leave it out or add --model=patch",
        ),
        (["--model=patch", "--norm=rmsnorm"], "--norm is a setting of model gpt, not of patch"),
        (["patch.py", "--model=gpt"], "patch.py: patch_size is a setting of model patch, not"),
        (["--model=gtp"], "unknown model 'gtp'; choose one of gpt, patch"),
        (["--patchsize=4"], "unknown setting --patchsize; did you mean --patch_size?"),
        (["--model=patch", "--patch_size=x"], "--patch_size expects int, got 'x'; e.g. --patch_"),
        (["--pattern=1"], "unknown setting --pattern"),
    ],
)
def test_mistakes_about_models(capsys, argv, words):
    write("patch.py", "model = 'patch'\npatch_size = 4\n")
    assert words in error(capsys, *argv, source=PROGRAM, models=MODELS)


def test_one_model_needs_no_setting_that_chooses():
    config = train("--width=3", source="steps = 5\n", models={"gpt": GPTConfig})
    assert config["width"] == 3


def test_fields_without_default_or_source():
    made = types.new_class("Made", (), {}, lambda ns: ns.update(__annotations__={"size": int}))
    made.size = 3
    assert list(train(source="a = 1\n", models={"made": dataclass(made)})) == ["a", "size"]

    @dataclass
    class Needs:
        vocab_size: int
        size: int = 3

    assert list(train(source="a = 1\n", models={"needs": Needs})) == ["a", "size"]


# --- what is printed, kept and shared ---


def test_one_line_tells_what_differs(capsys):
    file = write("config/x.py", "batch_size = 32\neval_only = False\n")
    config = train(file, "--dropout=0.2", "--out_dir=my runs")
    line = "settings: batch_size=32 dropout=0.2 out_dir='my runs' (config/x.py, command line)"
    out = capsys.readouterr().out
    assert sorted(out.split()) == sorted(line.split()) and out.count("\n") == 1
    assert out.strip() == describe(config)


def test_one_line_when_nothing_differs(capsys):
    train()
    train("--batch_size=12")
    expected = "settings: all defaults\nsettings: all defaults (command line)\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("rank, lines", [("0", 1), ("1", 0), ("7", 0)])
def test_only_rank_0_prints(capsys, monkeypatch, rank, lines):
    monkeypatch.setenv("RANK", rank)
    train("--batch_size=3")
    assert capsys.readouterr().out.count("\n") == lines


def test_config_is_a_plain_dict_to_json_and_pickle():
    config = train("--batch_size=3")
    assert json.loads(json.dumps(config)) == dict(config) == config
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert again == config and again.given == {"batch_size"}
        assert again.diff() == {"batch_size": 3} and describe(again) == describe(config)


def test_help_prints_every_setting_with_its_comment(capsys):
    with pytest.raises(SystemExit) as exit:
        train("--batch_size=3", "-h", source=TRAIN.replace("n_layer = 12", "model = 'gpt'"))
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert out.startswith(
        "A stand-in for a training program.\n\nIt trains nothing.\n\nusage: python"
    )
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in [
        "--out_dir=out",
        "--batch_size=12 examples per micro-step",
        "--dropout=0.0 -1 is not # allowed",
        "--compile=auto auto: where it is worth it [auto | on | off]",
        "--seed=None None: a new one every time",
        "--gradient_accumulation_steps=40",
    ]:
        assert expected in lines
    sections = ["I/O", "wandb logging", "data", "model", "optimizer", "hardware"]
    assert [line for line in lines if line in sections] == sections
    assert lines.index("optimizer") < lines.index("--decay_lr=True") < lines.index("hardware")


@pytest.mark.parametrize("argv", [["--help", "--model=patch"], ["--model", "patch", "--help"]])
def test_help_shows_the_chosen_model(capsys, argv):
    with pytest.raises(SystemExit) as exit:
        train(*argv, source=PROGRAM, models=MODELS)
    out = capsys.readouterr().out
    assert exit.value.code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Model patch (others: --model=gpt --help)" in lines
    assert "--patch_size=8 bytes" in lines and "--n_layer=6 global blocks" in lines
    assert "--model=gpt which one" in lines and "--norm" not in out


def test_help_describes_inherited_fields(capsys):
    with pytest.raises(SystemExit):
        train("--help", source=PROGRAM, models=MODELS)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = lines.index("Model gpt (others: --model=patch --help)")
    assert lines[start:] == [
        "Model gpt (others: --model=patch --help)",
        "",
        "Shape",
        "--n_layer=12 blocks",
        "--width=768",
        "",
        "Choices",
        "--norm=layernorm or rmsnorm",
        "--n_kv_head=None",
        "--vocab_size=50304",
    ]
    assert lines.count("--bias=False") == 1, "the program's own setting is listed once"


# --- as a program ---


def run(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_program_from_any_folder(folder):
    root = folder / "repository"
    root.mkdir()
    (root / "bonsai" / "system").mkdir(parents=True)
    for name in (
        "configurator.py",
        "bonsai/__init__.py",
        "bonsai/system/__init__.py",
        "bonsai/system/config_files.py",
        "bonsai/system/paths.py",
        "bonsai/system/errors.py",
        "bonsai/system/garbage.py",
        "bonsai/system/values.py",
    ):
        shutil.copy(ROOT / name, root / name)
    (root / "train.py").write_text(TRAIN + CALL + "print(config.batch_size, config['n_layer'])\n")
    write("repository/config/x.py", "batch_size = 3\n")
    write("y.py", "n_layer = batch_size\n")
    done = run(folder, "repository/train.py", "config/x.py", "y.py", PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    settings = "settings: batch_size=3 n_layer=3 (config/x.py, y.py)"
    assert done.stdout.splitlines() == [settings, "3 3"]
    done = run(root, "train.py", "config/x.py", "--eval_only", RANK="1", PYTHONPATH="")
    assert done.stdout == "3 12\n"


def test_program_ends_with_one_line_and_status_2(folder):
    write("train.py", TRAIN + CALL + "print('never')\n")
    done = run(folder, "train.py", "--batchsize=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown setting --batchsize; did you mean --batch_size? "
        "(python train.py --help lists all)\n"
    )


def test_program_help(folder):
    write("train.py", TRAIN + CALL + "print('never')\n")
    done = run(folder, "train.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python train.py [config/FILE.py ...] [--KEY=VALUE ...]" in done.stdout
    assert all(f"--{name}=" in done.stdout for name in NANOGPT_NAMES.split())
    assert "never" not in done.stdout and "settings:" not in done.stdout


def test_import_is_cheap():
    code = "import configurator, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(ROOT, "-c", code).stdout == "False False\n"


def test_settings_from_python_and_nothing_stays(folder):
    """Called twice in one process, as in a notebook; the command line there is the notebook's."""
    write("train.py", TRAIN)
    ns = namespace(TRAIN)
    before = dict(ns)
    first = configure(ns, MODELS, settings={"batch_size": 4, "n_layer": 2})
    second = configure(ns, MODELS, settings={"learning_rate": 1})
    assert (first.batch_size, first.n_layer, first.given) == (4, 2, {"batch_size", "n_layer"})
    assert second.batch_size == before["batch_size"] and second.learning_rate == 1.0
    assert ns == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batchsize": 4}, "unknown setting batchsize; did you mean batch_size?"),
        ({"batch_size": "4"}, "from Python: batch_size expects int, got '4'; e.g. batch_size = "),
    ],
)
def test_a_mistake_from_python_is_an_exception(folder, wrong, message):
    write("train.py", TRAIN)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        configure(namespace(TRAIN), MODELS, settings=wrong)


# --- called again, and what is asked of every program ---


def test_a_second_call_begins_with_the_programs_defaults():
    ns = namespace(TRAIN)
    assert configure(ns, argv=["--batch_size=4", "--out_dir=a"])["batch_size"] == 4
    again = configure(ns, argv=["--dropout=0.5"])
    assert (again["batch_size"], again["out_dir"], again["dropout"]) == (12, "out", 0.5)
    assert again.diff() == {"dropout": 0.5} and ns["batch_size"] == 12
    ns["batch_size"] = 7  # assigned in a notebook, between the two
    assert configure(ns, argv=[])["batch_size"] == 7


@pytest.mark.parametrize("word", ["-v", "-V", "-version", "--version"])
def test_version(capsys, word):
    with pytest.raises(SystemExit) as exit:
        train("--batch_size=3", word)
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(
        f"bonsai {__version__} (Python {sys.version.split()[0]}"
    )


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_words_for_help(capsys, word):
    with pytest.raises(SystemExit) as exit:
        train(word, "--batch_size=3")
    assert exit.value.code == 0 and "usage: python" in capsys.readouterr().out


def test_a_rank_that_is_empty(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "")
    train("--batch_size=3")
    assert "batch_size=3" in capsys.readouterr().out


def test_what_was_given_as_it_is_by_default_is_not_idle():
    c = train("--batch_size=12", "--max_iters=5")
    configurator.refuse_idle(c, (True, "batch_size", "now"), (False, "max_iters", "now"))
    with pytest.raises(UserError, match=r"^--max_iters is without effect now: leave it out$"):
        configurator.refuse_idle(c, (True, "batch_size max_iters", "now"))


def test_what_a_config_file_sets_is_not_idle(tmp_path):
    """It may be for more than one use."""
    (tmp_path / "small.py").write_text("max_iters = 5\nbatch_size = 3\n")
    c = train(str(tmp_path / "small.py"), "--batch_size=4")
    configurator.refuse_idle(c, (True, "max_iters", "now"))
    with pytest.raises(UserError, match="--batch_size is without effect now"):
        configurator.refuse_idle(c, (True, "batch_size", "now"))
