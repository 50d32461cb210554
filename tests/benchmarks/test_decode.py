"""benchmarks/decode.py, lookup.py and serve_load.py at toy size, and what they compute."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.made_model import TEXT, knows_text
from helpers.programs import ROOT, environment

from benchmarks import decode, serve_load
from bonsai.data.writer import Writer
from bonsai.engine import Engine, SamplingParams
from bonsai.engine.sampling import Row, noise, step_key
from bonsai.models.table import build_model
from bonsai.serving.registry import load_served
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer


def start(script: str, *args: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--device=cpu", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run that knows one text, and the data it names."""
    folder = tmp_path_factory.mktemp("trained")
    knows_text(folder / "out-byte", block_size=64, config={"dataset": "tiny"})
    coder = ByteTokenizer()
    with Writer(folder / "data" / "tiny", coder) as writer:
        for split in ("train", "val"):
            writer.add(split, coder.encode(TEXT * 3), text_bytes=3 * len(TEXT.encode()))
        writer.finish()
    return folder


# ---- decode.py ----


def test_decoding_at_toy_size_beside_a_peer(tmp_path):
    """The peer is our own model.py, whose generate recomputes everything as nanoGPT's does."""
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").write_text((ROOT / "model.py").read_text())
    kinds = "--kinds=float32;float32, drafted;int8, float32"
    args = ["--sizes=toy", kinds, "--batches=1,3", "--repeats=1"]
    done = start("decode.py", *args, "--peer=peer", "--out=results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "decode.json").read_text())
    rows = found["rows"]
    assert [(r["kind"], r["batch"]) for r in rows] == [
        *[("float32", 1), ("float32", 3), ("float32, drafted", 1)],
        *[("int8, float32", 1), ("int8, float32", 3)],
        ("nanoGPT's generate, float32", 1),
    ]
    assert all(r["rate"] > 0 for r in rows) and rows[0]["first_ms"] > 0 and rows[0]["ratio"] > 0
    # without the embedding's rows: 2 layers of 12 C^2, the head, keys and values after 14 tokens
    width = 32
    read = 4 * (2 * 12 * width**2 + 65 * width + 2 * 2 * width * 14)
    bandwidth = found["notes"]["toy"]["bandwidth"]["high"]
    assert rows[0]["limit"] == pytest.approx(bandwidth / read)
    assert rows[0]["share"] == pytest.approx(rows[0]["decode_rate"] / rows[0]["limit"])
    assert rows[2]["share"] is None and rows[2]["ratio"] > 0


def test_bytes_that_a_step_reads():
    model = build_model("gpt", decode.SIZES["toy"].model)
    whole = decode.bytes_per_step(model, "float32", 1, 0)
    assert whole == 4 * sum(p.numel() for p in model.parameters() if p.dim() == 2) - 4 * 64 * 32
    assert decode.bytes_per_step(model, "bfloat16", 1, 0) == whole / 2
    assert decode.bytes_per_step(model, "int8", 1, 0) == whole / 4
    assert decode.bytes_per_step(model, "int8", 5, 10) == whole / 4 + 5 * 2 * 2 * 32 * 10 * 2


def test_an_answer_is_timed_in_its_parts():
    model = build_model("gpt", decode.SIZES["toy"].model)
    got = decode.answer(Engine(model), [[1, 2]] * 3, SamplingParams(9))
    assert 0 < got["first"] < got["seconds"]
    assert got["decode_rate"] == pytest.approx(3 * 8 / (got["seconds"] - got["first"]))


@pytest.mark.parametrize(
    "args, says",
    [
        (["--sizes=huge"], "sizes=huge is not one of 124M, char, toy"),
        (["--sizes=toy", "--kinds=int3"], "kinds=int3 is not one of float32"),
        (["--repeats=0"], "repeats=0 must be at least 1"),
        (["--peer=nowhere"], "has no model.py"),
    ],
)
def test_mistakes(tmp_path, args, says):
    done = start("decode.py", *args, cwd=tmp_path)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr


# ---- lookup.py ----


def test_guessing_ahead_at_toy_size(trained):
    args = ["--out_dir=out-byte", "--most=3", "--temperatures=0", "--repeats=1", "--out=results"]
    done = start("lookup.py", *args, "--prompts=2", "--tokens=20", cwd=trained)
    assert done.returncode == 0, done.stderr
    rows = json.loads((trained / "results" / "lookup.json").read_text())["rows"]
    assert [r["lookup"] for r in rows] == [0, 3] and rows[0]["per_step"] == rows[0]["gain"] == 1
    assert rows[1]["per_step"] >= 1 and "another text" not in done.stdout


# ---- serve_load.py ----


def test_a_crowd_at_toy_size(trained):
    args = ["--out_dir=out-byte", "--seconds=3", "--engine_seconds=1", "--clients=5"]
    args += ["--tokens=12", "--checks=6", "--max_batch=4", "--out=results"]
    done = start("serve_load.py", *args, cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((trained / "results" / "serve_load.json").read_text())["rows"]
    assert row["errors"] == row["different"] == 0 and row["requests"] > 5
    assert row["checked"] == row["equal"] + row["excused"] == 6
    assert row["engine"] > 0 and row["server"] > 0 and row["tokens"] > 0


def test_how_close_a_choice_was(trained, monkeypatch):
    """By the scores of the draw itself; the end of text is None."""
    runtime = setup("cpu", "float32", False)
    served = load_served("m", str(trained / "out-byte"), runtime, 1)
    ask = serve_load.Ask(3, list(TEXT.encode()[:7]))
    common = list(TEXT.encode()[7:12])
    row = Row(ask.prompt, ask.params(served), 0, common)
    with torch.no_grad():
        logits = served.model(torch.tensor([ask.prompt + common]))[0][0, -1]
    key = torch.tensor(step_key(row.key, len(common)))
    scores = logits[:257] / 0.8 + noise(key, torch.arange(257))
    got = serve_load.margin(served, ask, common, 65, None)
    assert got == pytest.approx(abs(float(scores[65] - scores[256])), abs=1e-4)

    # two answers that part where the choice was close are excused, others are not
    def stream(ids: list[int]) -> bytes:
        chunk = json.dumps({"choices": [{"token_ids": ids}]})
        return f"HTTP/1.1 200 OK\r\n\r\ndata: {chunk}\r\n\r\ndata: [DONE]\r\n".encode()

    ask.raw = [stream([1, 2, 3])]
    for apart, alone, kind in ((5e-4, [1, 2, 4], "excused"), (0.1, [1, 2], "different")):
        monkeypatch.setattr(serve_load, "post", lambda port, ask, alone=alone: alone)
        monkeypatch.setattr(serve_load, "margin", lambda *args, apart=apart: apart)
        counts = serve_load.compare(0, served, [ask])
        assert counts["checked"] == counts[kind] == 1 and counts["equal"] == 0
    ask.raw, ask.error = [b"HTTP/1.1 200 OK\r\n\r\ndata: {}"], ""
    ask.raw = [stream([1])[:-12]]  # cut off
    assert ask.answer() == [1] and ask.error
