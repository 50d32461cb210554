"""benchmarks/bytes.py at toy size, and that its arms cost the same."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.programs import ROOT, environment

from benchmarks import bytes as bench
from bonsai.data.dataset import Mixture
from bonsai.data.writer import Writer
from bonsai.models.table import CONFIGS, build_model
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer


@pytest.mark.parametrize("scale, count", [("cpu", 9), ("gpu", 7)])
def test_the_arms_cost_the_same(scale, count):
    """FLOPs per byte of every arm, by its own formula, against those of the first."""
    costs = {}
    for arm, (name, sizes, T) in bench.SCALES[scale].items():
        settings = bench.settings_of(name, sizes, T)
        assert {*settings} - {"model"} <= {*CONFIGS[name].__dataclass_fields__}, arm
        with torch.device("meta"):
            costs[arm] = build_model(name, settings).flops_per_token()
    assert len(costs) == count
    for arm, flops in costs.items():
        assert flops == pytest.approx(costs["dense, short"], rel=0.06), (arm, costs)


def test_the_shapes_are_those_that_were_measured():
    """Millions of parameters, as in the tables of docs/bytes.md."""
    millions = {}
    for arm, kind in bench.CPU_ARMS.items():
        with torch.device("meta"):
            millions[arm] = round(bench.make(bench.settings_of(*kind)).num_params() / 1e6, 2)
    assert list(millions.values()) == [0.82, 0.38, 0.82, 3.20, 5.94, 3.58, 3.58, 3.58, 3.58]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data/toy, of bytes."""
    text = b"what is said once is said again. " * 100
    with Writer(tmp_path / "data" / "toy", ByteTokenizer()) as writer:
        for split in ("train", "val"):
            ids = ByteTokenizer().encode(text.decode())
            writer.add(split, ids, text_bytes=len(text))
        writer.finish()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bench.QUICK_STEPS, "toy", 2)
    return tmp_path


TOY = dict(scale="toy", device="cpu", dtype="float32", dataset="data/toy", generated=8)


def test_the_benchmark_runs_and_goes_on(place):
    bench.main(**TOY, quick=True, arms="MEGABYTE 4")
    results = place / "out-bytes" / "bytes.json"
    (first,) = json.loads(results.read_text())["rows"]
    bench.main(**TOY, quick=True)
    again = json.loads(results.read_text())
    assert len(again["rows"]) == 3 and again["rows"][0] == first  # not measured again
    rows = again["summary"]
    assert [r["arm"] for r in rows] == ["dense, short", "MEGABYTE 4", "SpaceByte"]
    assert all(2 < r["bpb"] < 9 and r["train_rate"] > 0 for r in rows)
    assert rows[1]["strided"] and rows[0]["strided"] is None
    assert (place / "out-bytes" / "bytes.png").stat().st_size > 5000
    text = (place / "out-bytes" / "bytes.txt").read_text()
    titles = ["arm", "context", "params", "MFLOPs/byte", "rate", "seeds", "bits per byte"]
    titles += ["± range", "strided", "train bytes/s", "layers in a row", "generates bytes/s"]
    assert [t.strip() for t in text.splitlines()[0].strip("| ").split("|")] == titles


def test_on_a_gpu_it_trains_compiled(place, monkeypatch, capsys):
    """A graph for each arm; what was measured otherwise is another row."""
    graphs, compile_as_told = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model: compile_as_told(model, backend=backend))
    options = TOY | dict(dtype="bfloat16", quick=True, optimizer="adamw", rate=1e-3)
    bench.main(**options, compile=True)
    assert len(graphs) == 3
    bench.main(**options, arms="dense, short")
    rows = json.loads((place / "out-bytes" / "bytes.json").read_text())["rows"]
    assert [r.get("compile") for r in rows] == [True, True, True, None]
    assert all(r["first_step"] > 0 and 2 < r["bpb"] < 9 for r in rows)


def test_arms_are_evaluated_without_gradients(place):
    """Though they were trained compiled, where an evaluation takes the graph of training."""
    recorded, runtime = [], replace(setup("cpu", "float32", False), compile=True)
    for arm in bench.TOY_ARMS.values():
        model = bench.make(bench.settings_of(*arm)).train()
        model.register_forward_pre_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
        assert 2 < bench.validate(model, Mixture.open("data/toy"), runtime, True)["bpb"] < 20
    assert len(recorded) > 3 and not any(recorded)


def test_no_run_begins_after_so_many_minutes(place):
    """The same command goes on; what was measured by then stands in the table."""
    bench.main(**TOY, quick=True, arms="dense, short")
    with pytest.raises(UserError, match="minutes are over: repeat the command to go on"):
        bench.main(**TOY, quick=True, minutes=1e-9)
    table = (place / "out-bytes" / "bytes.txt").read_text()
    assert "dense, short" in table and "SpaceByte" not in table
    bench.main(**TOY, quick=True, minutes=10.0)
    assert "SpaceByte" in (place / "out-bytes" / "bytes.txt").read_text()


def test_the_best_rate_has_further_seeds(place, capsys):
    options = dict(full=True, arms="dense, short", steps=2, seeds=2)
    bench.main(**TOY, **options, rates="0.01,0.02")
    (row,) = json.loads((place / "out-bytes" / "bytes.json").read_text())["summary"]
    assert row["seeds"] == 2 and row["range"] > 0
    said = capsys.readouterr().out
    assert "lowest or highest of those tried" in said and "3 runs of 2 steps of 512 bytes" in said


def test_costs_of_generation(place):
    bench.main(part="generation", length=32, rows="1,2", device="cpu")
    rows = json.loads((place / "out-bytes" / "generation.json").read_text())["rows"]
    names = ["dense", "MEGABYTE", "MEGABYTE", "dense", "MEGABYTE"]
    assert [r["model"] for r in rows] == names and [r["rows"] for r in rows] == [1, 1, 1, 2, 2]
    assert [r["caches"] for r in rows] == ["yes", "yes", "no", "yes", "yes"]
    assert rows[0]["ratio"] == rows[3]["ratio"] == 1 and rows[1]["serial"] == 8 / 8 + 2


def test_costs_of_contexts(place, monkeypatch):
    monkeypatch.setattr(bench, "in_a_process", lambda call, *args: call(*args))
    monkeypatch.setattr(bench, "LONG_STEP", 128)
    bench.main(part="context", contexts="64,128", dense_limit=64, device="cpu", dtype="float32")
    first, second = json.loads((place / "out-bytes" / "context.json").read_text())["rows"]
    assert first["gib"]["MEGABYTE"] > 0 and first["us"]["dense"] > 0
    assert "dense" not in second["us"] and second["mflops"]["dense"] > first["mflops"]["dense"]
    assert "from a context of 512 bytes" in (place / "out-bytes" / "context.txt").read_text()


@pytest.mark.parametrize(
    "part, other", [("generation", {"length": 32}), ("context", {"dense_limit": 64})]
)
def test_costs_go_on_where_they_were_cut(place, monkeypatch, capsys, part, other):
    """With other settings all is measured."""
    monkeypatch.setattr(bench, "in_a_process", lambda call, *args: (1.0, 2.0))
    options = dict(part=part, length=16, rows="1", contexts="64,128", device="cpu")
    bench.main(**options)
    path = place / "out-bytes" / f"{part}.json"
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == {"generation": 3, "context": 2}[part]
    path.write_text(json.dumps({"rows": rows[:1]}))
    for more, before in (({}, 1), ({}, len(rows)), (other, 0)):
        capsys.readouterr()
        bench.main(**{**options, **more})
        assert capsys.readouterr().out.count("measured before") == before
        assert len(json.loads(path.read_text())["rows"]) == len(rows)


@pytest.mark.skipif(os.name != "posix", reason="kills")
def test_a_process_of_its_own_ends_with_a_parent_that_is_killed():
    sleep = r"import os, time; os.write(1, b'%d\n' % os.getpid()); time.sleep(60)"
    code = f"from benchmarks.bytes import in_a_process; in_a_process(exec, {sleep!r})"
    pipes = dict(stdout=subprocess.PIPE, cwd=ROOT, env=environment())
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert int(process.stdout.readline()) != process.pid
        process.kill()
        assert process.stdout.read() == b""  # the other one has let go of it, too


def test_a_process_of_its_own_gives_its_result_or_one_line():
    assert bench.in_a_process(math.sqrt, 4.0) == 2.0
    with pytest.raises(UserError, match="9: failed: "):
        bench.in_a_process(os._exit, 9)
