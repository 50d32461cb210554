"""benchmarks/serve.py at toy size, and what it computes."""

import asyncio
import json

import psutil
import pytest
import torch
from helpers.made_model import TEXT

from benchmarks import serve
from bonsai.engine.sampling import Row, noise, step_key
from bonsai.serving.registry import load_served
from bonsai.system.runtime import setup
from configurator import configure


def test_a_crowd_at_toy_size(made_run, monkeypatch):
    monkeypatch.chdir(made_run)
    options = dict(seconds=1.5, engine_seconds=0.5, clients=5, tokens=12, checks=6, max_batch=4)
    threads = torch.get_num_threads()
    status = serve.main(out_dir="out-byte", device="cpu", out="results", **options)
    torch.set_num_threads(threads)
    assert status == 0
    (row,) = json.loads((made_run / "results" / "serve.json").read_text())["rows"]
    assert row["errors"] == row["different"] == 0 and row["requests"] > 5
    assert row["checked"] == row["equal"] + row["excused"] == 6
    assert row["engine"] > 0 and row["server"] > 0 and row["tokens"] > 0
    assert row["first"] <= row["first95"]
    titles = (made_run / "results" / "serve.txt").read_text().splitlines()[0].strip("| ").split("|")
    assert [t.strip() for t in titles] == [
        *("threads", "clients", "s", "requests", "errors", "engine tok/s", "server tok/s", "share"),
        *("first token s", "95%", "MiB", "growth MiB", "checked", "equal", "within 1e-3"),
        "different",
    ]
    # the same command takes the row that is there; what decides about it is another row
    measured = []
    monkeypatch.setattr(serve, "measure", lambda c, *rest: measured.append(c.clients) or row)
    for more, count in (({}, 0), ({"clients": 6}, 1), ({"tokens": 9}, 1), ({"force": True}, 1)):
        measured.clear()
        given = {"out_dir": "out-byte", "device": "cpu", "out": "results", **options, **more}
        assert serve.main(**given) == 0 and len(measured) == count, more
    torch.set_num_threads(threads)


def test_times_may_be_shorter_than_a_step_or_a_request(made_run, monkeypatch):
    """Each is measured once at least."""
    served = load_served("m", str(made_run / "out-byte"), setup("cpu", "float32", False), 2)
    c = configure(vars(serve), argv=["--engine_seconds=1e-6", "--seconds=1e-6", "--clients=2"])
    assert serve.time_engine(c, served) > 0

    async def client(*given):
        pass

    monkeypatch.setattr(serve, "client", client)
    monkeypatch.setattr(serve, "drawn_so_far", lambda port: 5.0)
    _, _, memory = asyncio.run(serve.load(c, 0, psutil.Process(), serve.questions(c, served)))
    assert len(memory) == 1 and memory[0] > 0


def test_errors_and_differences_that_were_found_before_are_the_status(made_run, monkeypatch):
    monkeypatch.chdir(made_run)
    threads = torch.get_num_threads()
    calls = []
    for found, dtype, status in (
        ({"errors": 1, "different": 0}, "float32", 1),
        ({"errors": 0, "different": 1}, "float32", 1),
        ({"errors": 0, "different": 1}, "bfloat16", 0),
    ):
        monkeypatch.setattr(serve, "measure", lambda *args, row=found: calls.append(row) or row)
        there = dict(out_dir="out-byte", out=f"results-{len(calls)}", dtype=dtype, device="cpu")
        assert [serve.main(**there) for _ in range(2)] == [status, status]
    assert len(calls) == 3
    torch.set_num_threads(threads)


def test_how_close_a_choice_was(made_run, monkeypatch):
    """By the scores of the draw itself; the end of text is None."""
    runtime = setup("cpu", "float32", False)
    served = load_served("m", str(made_run / "out-byte"), runtime, 1)
    c = configure(vars(serve), argv=[])
    ask = serve.Ask(list(TEXT.encode()[:7]), c.seed + 3, c.tokens)
    common = list(TEXT.encode()[7:12])
    row = Row(ask.prompt, ask.params(served), 0, common)
    with torch.no_grad():
        logits = served.model(torch.tensor([ask.prompt + common]))[0][0, -1]
    key = torch.tensor(step_key(row.key, len(common)))
    scores = logits[:257] / 0.8 + noise(key, torch.arange(257))
    got = serve.margin(served, ask, common, 65, None)
    assert got == pytest.approx(abs(float(scores[65] - scores[256])), abs=1e-4)

    # two answers that part where the choice was close are excused, others are not
    def stream(ids: list[int]) -> bytes:
        chunk = json.dumps({"choices": [{"token_ids": ids}]})
        return f"HTTP/1.1 200 OK\r\n\r\ndata: {chunk}\r\n\r\ndata: [DONE]\r\n".encode()

    ask.raw = [stream([1, 2, 3])]
    for apart, alone, kind in ((5e-4, [1, 2, 4], "excused"), (0.1, [1, 2], "different")):
        monkeypatch.setattr(serve, "post", lambda port, ask, alone=alone: alone)
        monkeypatch.setattr(serve, "margin", lambda *args, apart=apart: apart)
        counts = serve.compare(c, 0, served, [ask])
        assert counts["checked"] == counts[kind] == 1 and counts["equal"] == 0
    ask.raw, ask.error = [b"HTTP/1.1 200 OK\r\n\r\ndata: {}"], ""
    ask.raw = [stream([1])[:-12]]  # cut off
    assert ask.answer() == [1] and ask.error
