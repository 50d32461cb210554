"""Documents from files and from the hub."""

import json

import pytest

from bonsai.data import fetch
from bonsai.data.corpus import split_documents
from bonsai.data.pieces import Options, Seen
from bonsai.data.sources import from_files, from_hub
from bonsai.system.errors import UserError

FILES = [("data/test.jsonl", 7), ("data/train-0.jsonl", 11), ("data/train-1.jsonl", 13)]


def test_from_files(tmp_path):
    for name in ("a.txt", "b.md", "c.py"):
        (tmp_path / name).write_text(name)
    read, size = from_files(str(tmp_path), ".md", Options(), Seen())
    assert [piece.data for piece in read()] == [b"a.txt", b"b.md"] and size == 9


@pytest.fixture
def hub(monkeypatch):
    """A hub of FILES, each with rows that name it; the list holds what was downloaded."""
    downloaded = []

    class Library:
        def hf_hub_download(self, repo, path, repo_type, revision, local_dir):
            downloaded.append(path)
            (local_dir / path).parent.mkdir(exist_ok=True, parents=True)
            rows = [json.dumps({"text": f"{path} {i}"}) for i in range(20)]
            (local_dir / path).write_text("\n".join(rows))
            return str(local_dir / path)

    monkeypatch.setattr(fetch, "_hub", Library)
    monkeypatch.setattr(fetch, "hub_files", lambda repo, revision: FILES)
    return downloaded


@pytest.mark.parametrize(
    ("pattern", "taken", "size"),
    [("*", ["train-0", "train-1"], 24), ("*test*", ["test"], 7), ("data/*", 3, 31)],
)
def test_from_the_hub(hub, tmp_path, capsys, pattern, taken, size):
    read, total = from_hub("a/b", "main", pattern, tmp_path, False, Options(), Seen())
    assert total == size
    names = {piece.data.decode().split()[0] for piece in read()}
    if isinstance(taken, list):
        assert names == {f"data/{name}.jsonl" for name in taken}
    assert f"{len(names)} of the 3 files of a/b" in capsys.readouterr().out
    parts = [split for split, _, _ in split_documents(read, 0.2)]
    assert set(parts) == {"train", "val"} and len(parts) == 20 * len(names)
    assert not list(tmp_path.rglob("*.jsonl"))  # gone after they were read for the last time


def test_no_file_of_the_hub_matches(hub, tmp_path):
    with pytest.raises(UserError, match=r"no file of a/b matches \*\.csv: there are data/test"):
        from_hub("a/b", "main", "*.csv", tmp_path, False, Options(), Seen())
