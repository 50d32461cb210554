"""benchmarks/data.py and tokenizer.py at toy size."""

import json

import pytest
from helpers.shared_data import need_vocabulary

from benchmarks import data, tokenizer
from bonsai.system.errors import UserError


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("One day a cat said to me.\n" * 200, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(**options) -> None:
    data.main(input="corpus.txt", **options)


def test_a_way_is_timed_and_its_ids_checked(place):
    need_vocabulary()
    start(rows="text", repeats=1, workers=1, out="results")
    results = json.loads((place / "results" / "data.json").read_text())
    (row,) = results["rows"]
    assert row["way"] == "text" and row["same"] == "yes" and row["seconds"]["n"] == 1
    assert row["rate"] == pytest.approx(results["MB"] / row["seconds"]["median"])
    titles = ["way", "seconds", "spread", "MB/s", "times nanoGPT's way", "peak memory, MB"]
    table = (place / "results" / "data.txt").read_text().splitlines()
    assert [t.strip() for t in table[0].strip("| ").split("|")] == [*titles, "ids are tiktoken's"]


def test_the_next_call_goes_on_with_the_next_run(place, monkeypatch):
    """Where it was cut; runs with other settings are others."""
    runs, cuts = [], [2, 5]

    def timed(arguments: list[str], log) -> tuple[float, float]:
        if len(runs) in cuts:
            cuts.remove(len(runs))
            raise KeyboardInterrupt
        runs.append("jsonl" if "documents.jsonl" in arguments[2] else "text")
        return float(len(runs)), 10.0 * len(runs)

    monkeypatch.setattr(data, "timed", timed)
    options = dict(rows="text,jsonl", repeats=3, verify=False, out="results")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(**options)
    start(**options)
    assert runs == ["text", "jsonl", "jsonl", "text", "text", "jsonl"]
    rows = json.loads((place / "results" / "data.json").read_text())["rows"]
    assert [(r["way"], r["each"], r["memory"]) for r in rows] == [
        ("text", [1.0, 4.0, 5.0], 50.0),
        ("jsonl", [2.0, 3.0, 6.0], 60.0),
    ]
    for more, count in (({}, 0), ({"repeats": 4}, 2), ({"workers": 1}, 6), ({"force": True}, 6)):
        runs.clear()
        start(**{**options, **more})
        assert len(runs) == count, more


def test_what_a_program_took_is_its_own(place):
    """Not the memory of this process, which has torch."""
    seconds, megabytes = data.timed([data.sys.executable, "-c", "print('said')"], place / "log")
    assert seconds > 0 and 2 < megabytes < 100


def test_documents_are_whole(place):
    text = (place / "corpus.txt").read_text()
    documents = list(data.documents(place / "corpus.txt", 1000))
    assert "".join(documents) == text and {len(d) for d in documents[:-1]} == {1000}


def test_mistakes_are_one_line(place):
    with pytest.raises(UserError, match="rows=nosuch: 'nosuch' is not one of nanogpt, tokenizer"):
        start(rows="nosuch")
    with pytest.raises(UserError, match="no luck"):
        data.timed([data.sys.executable, "-c", "raise SystemExit('no luck')"], place / "log")


def test_vocabularies_are_timed(place, monkeypatch, capsys):
    texts = ["one day a cat said to me. " * 20]
    monkeypatch.setattr(tokenizer, "library_source", lambda: texts)
    (place / "shakespeare.txt").write_text("to be or not to be, that is the question. " * 100)
    monkeypatch.setattr(tokenizer, "hugging_face", lambda texts, size: None)
    options = dict(runs=1, vocab_size=260, shakespeare="shakespeare.txt", out="results")
    tokenizer.main(**options)
    rows = json.loads((place / "results" / "tokenizer.json").read_text())["rows"]
    assert [r["what"].split(",")[0] for r in rows if "encode" not in r["what"]][:3] == [
        "rustbpe alone",
        "fast path",
        "readable",
    ]
    assert not any("OTHER" in r["note"] for r in rows) and "the same ids" in rows[-1]["note"]
    assert rows[0]["note"] == "1.00x rustbpe alone"
    # cut before the second part: the next call does not repeat the first
    path, parts = place / "results" / "tokenizer.json", []
    path.write_text(json.dumps({"rows": [row for row in rows if row["tokens"] == 4096]}))
    for name in ("training", "encoding"):
        call = getattr(tokenizer, name)
        monkeypatch.setattr(
            tokenizer, name, lambda *args, name=name, call=call: parts.append(name) or call(*args)
        )
    tokenizer.main(**options)
    assert parts == ["training", "encoding"]
    assert [r["what"] for r in json.loads(path.read_text())["rows"]] == [r["what"] for r in rows]
    for more, count in (({}, 0), ({"vocab_size": 261}, 2), ({"force": True}, 3)):
        parts.clear()
        tokenizer.main(**{**options, **more})
        assert len(parts) == count, more
