"""benchmarks/data.py and tokenizer.py at toy size."""

import json

import pytest
from helpers.shared_data import need_vocabulary

from benchmarks import data, tokenizer
from bonsai.system.errors import UserError
from configurator import configure


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("One day a cat said to me.\n" * 200, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*options: str) -> None:
    data.main(configure(vars(data), argv=["--input=corpus.txt", *options]))


def test_a_way_is_timed_and_its_ids_checked(place):
    need_vocabulary()
    start("--rows=text", "--repeats=1", "--workers=1", "--out=results")
    results = json.loads((place / "results" / "data.json").read_text())
    (row,) = results["rows"]
    assert row["way"] == "text" and row["same"] == "yes" and row["seconds"]["n"] == 1
    assert row["rate"] == pytest.approx(results["MB"] / row["seconds"]["median"])
    titles = ["way", "seconds", "spread", "MB/s", "times nanoGPT's way", "peak memory, MB"]
    table = (place / "results" / "data.txt").read_text().splitlines()
    assert [t.strip() for t in table[0].strip("| ").split("|")] == [*titles, "ids are tiktoken's"]


def test_documents_are_whole(place):
    text = (place / "corpus.txt").read_text()
    documents = list(data.documents(place / "corpus.txt", 1000))
    assert "".join(documents) == text and {len(d) for d in documents[:-1]} == {1000}


def test_mistakes_are_one_line(place):
    with pytest.raises(UserError, match="rows=nosuch: 'nosuch' is not one of nanogpt, tokenizer"):
        start("--rows=nosuch")
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
