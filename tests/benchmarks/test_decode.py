"""benchmarks/decode.py at toy size, and what it computes."""

import json

import pytest
from helpers.programs import ROOT

from benchmarks import decode
from bonsai.engine import Engine, SamplingParams
from bonsai.models.table import build_model
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup


def test_decoding_at_toy_size_beside_a_peer(tmp_path, monkeypatch):
    """The peer is our own model.py, whose generate recomputes everything as nanoGPT's does."""
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").write_text((ROOT / "model.py").read_text())
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    kinds = "float32;float32, drafted;int8, float32"
    there = dict(device="cpu", peer=str(tmp_path / "peer"), out=str(tmp_path))
    decode.main(sizes="toy", kinds=kinds, batches="1,3", repeats=1, **there)
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [(r["kind"], r["batch"]) for r in rows] == [
        *[("float32", 1), ("float32", 3), ("float32, drafted", 1)],
        *[("int8, float32", 1), ("int8, float32", 3)],
        ("nanoGPT's generate, float32", 1),
    ]
    assert (
        all(r["rates"]["median"] > 0 for r in rows)
        and rows[0]["first_ms"] > 0
        and rows[0]["ratio"] > 0
    )
    # without the embedding's rows: 2 layers of 12 C^2, the head, keys and values after 14 tokens
    width = 32
    read = 4 * (2 * 12 * width**2 + 65 * width + 2 * 2 * width * 14)
    assert rows[0]["limit"] == pytest.approx(rows[0]["bandwidth"]["high"] / read)
    share = rows[0]["decode_rates"]["median"] / rows[0]["limit"]
    assert rows[0]["share"] == pytest.approx(share)
    assert "share" not in rows[2] and rows[2]["ratio"] > 0
    titles = (tmp_path / "decode.txt").read_text().splitlines()[0].strip("| ").split("|")
    assert [t.strip() for t in titles] == [
        *("model", "weights", "batch", "tokens/s", "decode/s", "spread", "limit/s", "share"),
        *("to peer", "to batch 1", "first token, ms", "cold, s", "longest wait, s"),
        *("kernels/step", "n"),
    ]
    assert all(r["cold"] > 0 and r["wait"] > 0 and r["rates"]["n"] == 1 for r in rows[:-1])


def test_queued_steps_are_timed_as_others(tmp_path, monkeypatch):
    """Steps by graphs, which a CPU calls again."""
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    decode.main(
        sizes="toy",
        kinds="bfloat16, graphs",
        batches="3",
        repeats=1,
        device="cpu",
        out=str(tmp_path),
    )
    (row,) = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert row["kind"] == "bfloat16, graphs" and row["batch"] == 3
    assert row["decode_rates"]["median"] > 0 and row["first_ms"] > 0


def test_queued_steps_need_more_tokens_than_are_queued_at_first(tmp_path, monkeypatch):
    """Shorter answers come at once: no rate of later tokens could be measured."""
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    there = dict(sizes="toy", kinds="float32;bfloat16, graphs", batches="1", repeats=1)
    with pytest.raises(UserError, match="an answer has 9 tokens or more"):
        decode.main(**there, device="cpu", tokens=8)
    decode.main(**there, device="cpu", tokens=9, out=str(tmp_path))
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert len(rows) == 2 and all(row["decode_rates"]["median"] > 0 for row in rows)


def test_prompts_and_answers_may_be_of_any_length(tmp_path, monkeypatch, capsys):
    """Also where a draft, which goes one text at a time, stands beside others that do not."""
    real, seen = decode.answer, set()

    def answer(engine, prompts, params):
        seen.add((len(prompts), len(prompts[0]), params.max_new_tokens))
        return real(engine, prompts, params)

    monkeypatch.setattr(decode, "answer", answer)
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    there = dict(sizes="toy", batches="3", repeats=1, device="cpu", out=str(tmp_path))
    decode.main(**there, kinds="float32, drafted;float32", prompt=5, tokens=7)
    assert seen == {(1, 5, 7), (3, 5, 7), (1, 50, 1)}
    assert "toy: prompts of 5 tokens, answers of 7" in capsys.readouterr().out
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [(r["kind"], r["batch"]) for r in rows] == [("float32, drafted", 1), ("float32", 3)]
    for wrong in ({"tokens": 1}, {"prompt": 60}, {"prompt": 40, "tokens": 25}):
        with pytest.raises(UserError, match="at most 64"):
            decode.main(**there, kinds="float32", **wrong)


def test_what_is_measured_is_there_when_it_is_cut_short(tmp_path, monkeypatch):
    """Rows are written one by one; the first round warms up, which n = 0 says."""
    real, calls = decode.answer, []

    def answer(*args):
        calls.append(args)
        if len(calls) == 9:  # a round has two answers of each kind
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(decode, "answer", answer)
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    options = dict(sizes="toy", kinds="float32;int8, float32", batches="1", repeats=2)
    with pytest.raises(KeyboardInterrupt):
        decode.main(**options, device="cpu", out=str(tmp_path))
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [(r["kind"], r["rates"]["n"]) for r in rows] == [("float32", 1), ("int8, float32", 1)]
    text = (tmp_path / "decode.txt").read_text()
    assert "int8, float32" in text and len(text.splitlines()) == 4


def test_the_same_command_goes_on_with_the_model_that_was_cut(tmp_path, monkeypatch, capsys):
    """And takes none that was measured with other settings."""
    real, calls = decode.answer, []

    def answer(engine, prompts, params):
        calls.append(engine.model.config.block_size)
        if len(calls) == 7:  # a round has two answers
            raise KeyboardInterrupt
        return real(engine, prompts, params)

    def rows() -> list[tuple]:
        found = json.loads((tmp_path / "decode.json").read_text())["rows"]
        return [(r["size"], r["rates"]["n"], r.get("whole")) for r in found]

    settings, *lengths, _ = decode.SIZES["toy"]
    monkeypatch.setitem(decode.SIZES, "short", ({**settings, "block_size": 50}, *lengths, 40))
    monkeypatch.setattr(decode, "answer", answer)
    monkeypatch.setattr(decode, "read_bandwidth", lambda runtime: 1e9)
    options = dict(sizes="toy,short", kinds="float32", batches="1", repeats=1, device="cpu")
    options["out"] = str(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        decode.main(**options)
    assert rows() == [("toy", 1, True), ("short", 0, None)]
    decode.main(**options)
    assert rows() == [("toy", 1, True), ("short", 1, True)] and calls[7:] == [50] * 4
    assert "toy: measured before" in capsys.readouterr().out
    decode.main(**options)
    assert len(calls) == 11
    for changed in ({"force": True}, {"tokens": 9}, {"seed": 5}):
        before = len(calls)
        decode.main(**{**options, **changed})
        assert calls[before:] == [64] * 4 + [50] * 4 and len(rows()) == 2


@pytest.mark.slow
def test_the_memory_is_read():
    """A GiB of it, at more than a hundredth of a second and less than a minute."""
    assert 1e8 < decode.read_bandwidth(setup("cpu", "float32", False)) < 1e12


def test_bytes_that_a_step_reads():
    model = build_model("gpt", decode.SIZES["toy"][0])
    whole = decode.bytes_per_step(model, "float32", 1, 0)
    assert whole == 4 * sum(p.numel() for p in model.parameters() if p.dim() == 2) - 4 * 64 * 32
    assert decode.bytes_per_step(model, "bfloat16", 1, 0) == whole / 2
    assert decode.bytes_per_step(model, "int8", 1, 0) == whole / 4
    assert decode.bytes_per_step(model, "int8", 5, 10) == whole / 4 + 5 * 2 * 2 * 32 * 10 * 2


def test_an_answer_is_timed_in_its_parts():
    model = build_model("gpt", decode.SIZES["toy"][0])
    got = decode.answer(Engine(model), [[1, 2]] * 3, SamplingParams(9))
    assert 0 < got["first"] < got["seconds"] and 0 < got["wait"] <= got["seconds"] - got["first"]
    assert got["decode_rate"] == pytest.approx(3 * 8 / (got["seconds"] - got["first"]))


def test_guessing_ahead_at_toy_size(made_run, monkeypatch, capsys):
    monkeypatch.chdir(made_run)
    options = dict(most="3", temperatures="0", repeats=1, prompts=2, tokens=20)
    decode.main(out_dir="out-byte", device="cpu", out="results", **options)
    rows = json.loads((made_run / "results" / "lookup.json").read_text())["rows"]
    assert [r["lookup"] for r in rows] == [0, 3] and rows[0]["per_step"] == 1
    assert rows[0]["gain"]["median"] == rows[0]["gain"]["low"] == 1
    assert rows[1]["per_step"] >= 1 and "another text" not in capsys.readouterr().out
    decode.main(out_dir="out-byte", device="cpu", out="results", **options)
    assert "temperature 0: measured before" in capsys.readouterr().out
    options["temperatures"] = "0,1"
    decode.main(out_dir="out-byte", device="cpu", out="results", **options)
    again = json.loads((made_run / "results" / "lookup.json").read_text())["rows"]
    assert [(r["temperature"], r["lookup"]) for r in again] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    assert [r["gain"] for r in again[:2]] == [r["gain"] for r in rows]
    with pytest.raises(UserError, match="tokens=64 must be between 2 and 63"):
        decode.main(out_dir="out-byte", device="cpu", tokens=64)
