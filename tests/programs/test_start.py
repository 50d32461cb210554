"""How programs start: which libraries they load, how often they compile, what train.py says."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers.made_model import TEXT, knows_text
from helpers.programs import ROOT, environment, train

import train as train_program
from bonsai.data.writer import Writer
from bonsai.models import spacebyte
from bonsai.tokenizers import ByteTokenizer

# what a program loads only when it is used
OPTIONAL = "transformers datasets wandb tiktoken pandas pyarrow scipy sklearn huggingface_hub "
OPTIONAL += "sentencepiece rustbpe gigatoken safetensors IPython tensorboard trackio"
SERVER = "fastapi starlette uvicorn pydantic jinja2"
DRAWING = "matplotlib PIL"

COMPILER = "sympy"  # which torch.compile loads, with much else: a second

# Runs the programs one after another, as that takes one start of torch; prints what each has loaded
# beside those before it.
LOAD = """
import contextlib, json, os, sys
sys.path.insert(0, sys.argv[1])
tiny = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, device="cpu", dtype="float32")
run = dict(**tiny, dataset="meta", batch_size=2, gradient_accumulation_steps=1, max_iters=2)
there = dict(init_from="made/ckpt.pt", device="cpu")
loaded, known = {}, set()

def note(name):
    loaded[name] = sorted({m.partition(".")[0] for m in sys.modules} - known)
    known.update(loaded[name])

with contextlib.redirect_stdout(sys.stderr):
    import sample
    sample.main(**there, num_samples=1, max_new_tokens=2, start="a")
    note("sample")
    import eval
    eval.main(**there, dataset="bytes_of_it", block_size=16)
    note("eval")
    import serve
    serve.serve = lambda app, worker, sock, most: sock.close()
    serve.main(**there, port=0)
    note("serve")
    import bench
    bench.main(**tiny, dataset="meta", steps=1, warmup=0)
    note("bench")
    import train
    from bonsai.training.report import Report
    Report.plot = lambda report: note("train")  # the picture of the run comes last
    train.main(**run, eval_iters=1, out_dir="out")
print(json.dumps(loaded))
os._exit(0)
"""


@pytest.fixture(scope="module")
def loaded(workplace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "data").mkdir()
    (folder / "data" / "meta").symlink_to(workplace / "data" / "meta")
    knows_text(folder / "made", block_size=64)
    coder = ByteTokenizer()
    with Writer(folder / "data" / "bytes_of_it", coder) as writer:
        for split in ("train", "val"):
            writer.add(split, coder.encode(TEXT))
        writer.finish()
    command = [sys.executable, "-c", LOAD, str(ROOT)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", ["sample", "eval", "serve", "bench", "train"])
def test_a_program_loads_no_library_that_it_does_not_use(loaded, program):
    used = SERVER if program == "serve" else ""
    idle = {*f"{OPTIONAL} {DRAWING} {SERVER} {COMPILER}".split()} - {*used.split()}
    assert set(loaded[program]) & idle == set()
    assert program in loaded[program]  # it has run here


# All in one process: what one of them loads is there for the next, and nothing of it may be.
HELP = """
import contextlib, io, json, runpy, sys
loaded = {}
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    sys.path[0] = program.rpartition("/")[0]
    before = set(sys.modules)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(program, run_name="__main__")
    loaded[program] = sorted({m.partition(".")[0] for m in set(sys.modules) - before})
print(json.dumps(loaded))
"""


def test_help_of_no_program_loads_what_only_some_runs_use():
    """Of every program, with those that begin quickest first: they do not load torch."""
    quick = ["show_tokens.py", "train_tokenizer.py", "benchmarks/clock.py"]
    quick += ["benchmarks/gpu.py"]  # only starts others
    quick += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("data/*/prepare.py"))
    others = {
        str(p.relative_to(ROOT))
        for f in ("", "benchmarks/", "projects/*/")
        for p in ROOT.glob(f"{f}*.py")
        if "    run(" in p.read_text(encoding="utf-8")
    }
    programs = [*quick, *sorted(others - {*quick, "serve.py"}), "serve.py"]
    command = [sys.executable, "-c", HELP, *(str(ROOT / p) for p in programs)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = json.loads(done.stdout)
    assert len(loaded) > 35
    for program, names in loaded.items():
        used = SERVER if program.endswith("/serve.py") else ""
        idle = {*f"{OPTIONAL} {DRAWING} {SERVER} {COMPILER} triton".split()} - {*used.split()}
        assert set(names) & idle == set(), program
        assert "torch" not in names or program.removeprefix(f"{ROOT}/") not in quick, program


# ---- train.py ----


def test_train_says_how_long_it_took_to_the_first_step(workplace, out):
    done = train(workplace, out, "--max_iters=2")
    lines = [line for line in done.stdout.splitlines() if line.startswith("first step done after")]
    assert len(lines) == 1, done
    names = ("imports", "device", "model", "data", "evaluation", "first step")
    parts = ", ".join(rf"{name} [\d.]+" for name in names)
    assert re.fullmatch(rf"first step done after [\d.]+ s \({parts}\)", lines[0])


@pytest.mark.parametrize("eval_iters", [0, 2])
@pytest.mark.parametrize(
    "fields, count",
    [
        ({}, 1),
        ({"activation": "relu2"}, 1),
        ({"further_weight": 0.5}, 1),
        ({"window_ramp": 3, "attention_window": 8}, 3),
        ({"model": "spacebyte", "local_layer": 2, "local_embd": 16}, 1),
    ],
    ids=[
        "classic",
        "squared ReLU",
        "second loss",
        "windows that grow twice",
        "patches of any number",
    ],
)
def test_a_compiled_run_compiles_its_model_once(
    workplace, out, monkeypatch, eval_iters, fields, count
):
    """Evaluation goes through the graph of training, whole splits with a shorter last batch too. No
    autograd.Function is in it: torch would take up such a graph anew in every run."""
    graphs, compile_as_told = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(torch, "compile", lambda model: compile_as_told(model, backend=backend))
    monkeypatch.setattr(spacebyte, "SLOTS", 1)
    torch.compiler.reset()
    tiny = dict(n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=3, eval_interval=2)
    tiny |= dict(device="cpu", dtype="float32", compile=True, gradient_accumulation_steps=2)
    settings = dict(dataset="meta", max_iters=3, eval_iters=eval_iters, out_dir=str(out))
    assert train_program.main(**tiny, **settings, **fields) == 0
    assert len(graphs) == count
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not [name for name in called if "autograd_function" in name]
