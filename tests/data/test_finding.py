"""bonsai/data/finding.py: every file below a folder, once; a link is no hole and no circle."""

import os
from pathlib import Path

import pytest

from bonsai.data.finding import as_endings, find_files, walk
from bonsai.system.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_linked_folders_are_followed_and_none_comes_twice(tmp_path):
    make(tmp_path / "elsewhere", "deep/a.txt", "b.txt")
    make(tmp_path / "in", "real/c.txt", "d.txt", ".git/e.txt", "out/f.txt")
    links = {"a_link": "../elsewhere", "z_link": "../elsewhere", "circle": ".", "real/up": ".."}
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "in" / "first").symlink_to("real")  # what is really there is taken from there
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert len(find_files(str(tmp_path))) == 5
    names = [f.relative_to(tmp_path / "in").as_posix() for f in find_files(str(tmp_path / "in"))]
    assert names == ["a_link/b.txt", "a_link/deep/a.txt", "d.txt", "out/f.txt", "real/c.txt"]
    names = sorted(name for _, names in walk(tmp_path / "in", {"out"}) for name in names)
    assert names == ["a.txt", "b.txt", "c.txt", "d.txt"]


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    make(tmp_path, "a/b.txt", "c.txt")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*a: Permission denied"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("part, hint", [("https://a.b/c.txt", "download first"), ("c.txt", "")])
def test_what_is_not_there(part, hint):
    with pytest.raises(UserError, match=f"no such file or folder: {part}.*{hint}$"):
        find_files(part)


@pytest.mark.parametrize("text", [".md,.py", ".md, .py", " md ,py,", "*.MD,*.py", ".md,,  .py "])
def test_endings_however_they_are_written(text):
    assert as_endings(text) == (".md", ".py")


def test_many_names_in_one_setting(tmp_path):
    """Longer than a file's name may be: looking for a file of that name must not fail."""
    names = [f"{i:03d}.txt" for i in range(100)]
    make(tmp_path, *names)
    assert len(find_files(", ".join(names), (tmp_path,))) == 100


def test_a_list_is_told_how_it_becomes_rows(tmp_path):
    for name, more in (("a.json", "; jq -c '.[]' makes .jsonl of a list"), ("a.csv", "")):
        (tmp_path / name).write_text("[]")
        with pytest.raises(UserError) as e:
            find_files(str(tmp_path / name))
        assert str(e.value).endswith(f".parquet files{more}")


def test_files_of_other_kinds_are_told_how_they_are_read_as_text(tmp_path):
    make(tmp_path, "notes/a.md", "notes/deep/b.MD", "notes/c.rst", "notes/README", "one.md")
    (tmp_path / "notes" / "d.png").write_bytes(b"PNG\0")
    for spec, endings, words in (
        ("notes", (), "; --endings=.md,.rst reads such files as text"),
        ("notes/*", (), "; --endings=.md,.rst reads such files as text"),
        ("one.md", (), "; --endings=.md reads such files as text"),
        ("one.md", (".py",), "; --endings=.py,.md reads such files as text"),
        ("notes/README", (), ""),
        ("notes/d.png", (), ""),
        ("notes", None, ""),  # a program without this setting
        ("one.md", None, ""),
    ):
        with pytest.raises(UserError) as e:
            find_files(spec, (tmp_path,), endings)
        assert ("endings" in str(e.value)) == bool(words) and str(e.value).endswith(words), spec
    assert len(find_files("notes", (tmp_path,), as_endings(".md,.rst"))) == 3
