"""bonsai/data/fetch.py: what comes whole is kept, what does not is one line and no file."""

import pytest
from helpers.site import site_with

from bonsai.data import fetch
from bonsai.data.fetch import download, fetch_text, hub_files
from bonsai.system.errors import UserError

LISTS = {  # of a data set: what the hub answers
    "rows": [
        {"type": "file", "path": "b.jsonl", "size": 5},
        {"type": "file", "path": "a.txt", "size": 3},
        {"type": "file", "path": "empty.txt", "size": 0},
        {"type": "file", "path": "readme.pdf", "size": 9},
        {"type": "directory", "path": "more", "size": 0},
    ],
    "nothing": [{"type": "file", "path": "readme.pdf", "size": 9}],
    "error": {"error": "no such data set"},
}
LISTS["both"] = [*LISTS["rows"], {"type": "file", "path": "c.parquet", "size": 7}]


@pytest.fixture(scope="module")
def site():
    with site_with({"whole": "né\n", "short": "né\n"}) as site:
        site.lists = LISTS
        yield site.url


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_text_is_downloaded_once(site, tmp_path, capsys):
    path = tmp_path / "input.txt"
    assert fetch_text(f"{site}/whole", path) == "né\n"
    assert capsys.readouterr().out == f"downloading {site}/whole\n"
    assert path.read_bytes() == "né\n".encode()
    assert fetch_text("http://nowhere.invalid/", path) == "né\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "url, words",
    [
        ("{site}/short", "4 of 1000 bytes arrived"),
        ("{site}/none", "HTTP 404"),
        ("http://127.0.0.1:9/", "cannot download"),  # where nobody listens
    ],
)
def test_what_does_not_come_whole_leaves_what_was_there(site, tmp_path, url, words):
    (tmp_path / "a").write_text("before")
    with pytest.raises(UserError, match=words) as e:
        download(url.format(site=site), tmp_path / "a")
    assert "--input=PATH" in str(e.value) and "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_files_of_the_hub_that_can_be_read(site, monkeypatch):
    """Parquet where there is any, else every format that a reader knows; in the order of names."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", site)
    assert hub_files("rows", "main") == [("a.txt", 3), ("b.jsonl", 5)]
    assert hub_files("both", "main", "folder") == [("c.parquet", 7)]
    with pytest.raises(UserError, match=r"there is no .*\.txt.* file"):
        hub_files("nothing", "main")
    with pytest.raises(UserError, match="the answer is no list of files"):
        hub_files("error", "main")


def test_a_file_of_the_hub_stays_only_if_asked(tmp_path, monkeypatch):
    class Library:
        def hf_hub_download(self, repo, path, repo_type, revision, local_dir):
            if path == "gone":
                raise RuntimeError("a page\n" * 100)
            (local_dir / path).write_text(f"{repo} {revision}")
            return str(local_dir / path)

    monkeypatch.setattr(fetch, "_hub", Library)
    for keep in (False, True):
        got = []
        for path in fetch.hub_downloads("some/texts", "main", ["a", "b"], tmp_path, keep):
            got.append(path.read_text())
            assert path.exists()
        assert got == ["some/texts main"] * 2
        assert len(list(tmp_path.iterdir())) == 2 * keep
    with pytest.raises(UserError, match=r"download of gone from some/texts failed \(RuntimeError"):
        next(fetch.hub_downloads("some/texts", "main", ["gone"], tmp_path))
