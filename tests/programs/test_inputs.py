"""Programs that read a file of the user's, given what is no such file: one line says what it is.

In this process, for speed; the files are named as each program wants them.
"""

import errno
import gzip
import io
import json
import os
import pickle
import random
import runpy
import sys

import pytest
from helpers.programs import ROOT

from bonsai.data.meta import open_meta
from bonsai.data.readers import read_pieces
from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer, SentencePieceTokenizer, get

READERS = {  # the setting that takes the file, its name, further settings
    "data/bytes/prepare.py": [("input", "a.txt", [])],
    "data/chat/prepare.py": [
        ("input", "a.jsonl", ["--tokenizer=byte"]),
        ("input", "a.parquet", ["--tokenizer=byte"]),
        ("template", "a.json", ["--tokenizer=byte", "--input=good.jsonl"]),
    ],
    "data/custom/prepare.py": [
        ("input", "a.txt", ["--tokenizer=byte"]),
        ("input", "a.jsonl", ["--tokenizer=byte"]),
        ("input", "a.txt.gz", ["--tokenizer=char"]),
        ("input", "a.txt.zst", ["--tokenizer=byte"]),
        ("input", "a.parquet", ["--tokenizer=byte"]),
        ("tokenizer", "a.json", ["--input=good.txt"]),
        ("tokenizer", "a.model", ["--input=good.txt"]),
    ],
    "data/fineweb/prepare.py": [("input", "a.parquet", ["--tokenizer=byte"])],
    "data/shakespeare_char/prepare.py": [("input", "a.txt", [])],
    "train_tokenizer.py": [
        ("input", "a.txt", []),
        ("ranks", "a.tiktoken", []),
        ("ranks", "vocab.bpe", []),
    ],
    "show_tokens.py": [
        ("file", "a.txt", ["--tokenizers=byte"]),
        ("tokenizers", "a.json", ["--text=a"]),
    ],
}
CASES = [(program, *case) for program, cases in READERS.items() for case in cases]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text("some good text\n" * 20)
    pairs = [json.dumps({"prompt": f"{i}", "completion": "good"}) for i in range(20)]
    (tmp_path / "good.jsonl").write_text("\n".join(pairs))
    return tmp_path


def call(monkeypatch, program: str, *arguments: str) -> None:
    """The program's main, after it has read these arguments."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    main = runpy.run_path(str(ROOT / program), run_name="not main")["main"]
    main()


def make(path, kind: str) -> None:
    """Puts something of the kind where the file should be."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "closed":
        path.write_bytes(b"text")
        path.chmod(0)
    else:
        path.symlink_to("nowhere" if kind == "dangling link" else path.name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name, which needs POSIX")
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "circle", "closed"])
@pytest.mark.parametrize(("program", "setting", "name", "others"), CASES)
def test_what_is_no_file(here, monkeypatch, program, setting, name, others, kind):
    if kind == "closed" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    make(here / name, kind)
    out = [] if program == "show_tokens.py" else [f"--out={here / 'out.json'}"]
    with pytest.raises(UserError) as e:
        call(monkeypatch, program, f"--{setting}={here / name}", *others, *out)
    text = str(e.value)
    assert "\n" not in text and (name.split(".")[0] in text), text
    if kind == "pipe":
        assert "a pipe, not a file" in text or "no such file" in text
    if kind == "closed":
        assert "Permission denied" in text
    assert not (here / "out.json").exists()


@pytest.mark.parametrize(("program", "setting", "name", "others"), CASES)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_the_system_says_is_passed_on(
    here, monkeypatch, program, setting, name, others, number
):
    """Too many open files, no permission, a disk that fails: not "damaged", and no traceback."""
    (here / name).write_bytes(b"text")
    real = open

    def refuse(path, *args, **options):
        if str(path).endswith(f"/{name}") and "w" not in (args or ("r",))[0]:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)
    out = [] if program == "show_tokens.py" else [f"--out={here / 'out.json'}"]
    with pytest.raises((UserError, OSError)) as e:
        call(monkeypatch, program, f"--{setting}={here / name}", *others, *out)
    if name != "a.parquet":  # opened by pyarrow: it is no parquet file
        assert os.strerror(number) in str(e.value) and "damaged" not in str(e.value)
        assert isinstance(e.value, UserError)


WRITERS = [
    ("data/bytes/prepare.py", ["--input=good.txt", "--out=out"]),
    ("data/custom/prepare.py", ["--input=good.txt", "--tokenizer=char", "--out=out"]),
    ("data/chat/prepare.py", ["--input=good.jsonl", "--tokenizer=byte", "--out=out"]),
    ("data/shakespeare_char/prepare.py", ["--input=good.txt", "--out=out"]),
    ("data/python_stdlib/prepare.py", ["--input=code", "--out=out"]),
    ("train_tokenizer.py", ["--input=good.txt", "--out=out/a.json"]),
    ("train_tokenizer.py", ["--input=good.txt", "--tiktoken_out=out/a.tiktoken", "--stats=False"]),
    ("train_tokenizer.py", ["--input=good.txt", "--hf_out=out/tokenizer.json", "--stats=False"]),
    ("train_tokenizer.py", ["--input=good.txt", "--html=out/a.html", "--stats=False"]),
    ("train_tokenizer.py", ["--input=good.txt", "--curve_png=out/a.png", "--compare="]),
    ("show_tokens.py", ["--text=a", "--tokenizers=byte", "--html=out/a.html"]),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(("program", "arguments"), WRITERS, ids=lambda v: str(v)[-40:])
def test_a_disk_that_takes_nothing(here, monkeypatch, program, arguments, number):
    """That it is full is said wherever something is written; nothing is left."""
    (here / "code").mkdir()
    for i in range(30):
        (here / "code" / f"{i}.py").write_text(f"x = {i}\n")
    real = io.open

    def refuse(path, mode="r", *args, **options):
        if "out/" in str(path).replace(os.sep, "/") and ("w" in mode or "x" in mode):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(io, "open", refuse)  # what pathlib calls
    with pytest.raises(UserError) as e:
        call(monkeypatch, program, *arguments)
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("disk is full" if full else os.strerror(number)) in str(e.value)
    assert "out" in str(e.value) and not list(here.glob("out/*"))


def test_linked_folders_of_bytes(here, monkeypatch, capsys):
    for name in ("in/a/1.bin", "in/2.bin", "elsewhere/3.bin"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"\xff" * 100)
    (here / "in" / "link").symlink_to(here / "elsewhere", target_is_directory=True)
    (here / "in" / "circle").symlink_to(here / "in", target_is_directory=True)
    call(monkeypatch, "data/bytes/prepare.py", "--input=in", "--out=out")
    assert "3 files, 300 bytes" in capsys.readouterr().out


def good_files() -> dict[str, bytes]:
    """One of each kind that is read, as it should be; parquet has its own tests."""
    texts = [f"document {i} é\n" * 3 for i in range(50)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    model = SentencePieceTokenizer.train([*texts, "abc def ghi " * 5], 300).model
    meta = {"vocab_size": 3, "itos": dict(enumerate("abc")), "stoi": {"a": 0, "b": 1, "c": 2}}
    return {
        "a.txt": "".join(texts).encode(),
        "a.jsonl": rows,
        "a.jsonl.gz": gzip.compress(rows),
        "a.txt.zst": pytest.importorskip("pyarrow").Codec("zstd").compress(rows, asbytes=True),
        "a.model": model,
        "a.json": json.dumps(BPETokenizer.train(texts, 300).to_dict()).encode(),
        "meta.pkl": pickle.dumps(meta),
    }


def test_any_byte_may_be_wrong(here):
    """Whatever a damaged file has become: it is read, or one line says what is wrong."""
    rng = random.Random(0)
    for name, good in good_files().items():
        for _ in range(60):
            data = bytearray(good)
            for _ in range(rng.choice([1, 1, 3, 10])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            data = data[: rng.randrange(len(data)) if rng.random() < 0.2 else None]
            (here / name).write_bytes(data)
            try:
                if name == "meta.pkl":
                    open_meta(here)
                elif name in ("a.model", "a.json"):
                    tokenizer = get(here / name)
                    tokenizer.decode(tokenizer.encode("some text"))
                else:
                    list(read_pieces([here / name]))
            except UserError as e:
                assert len(str(e)) < 600 and "Traceback" not in str(e)


@pytest.mark.parametrize(
    "program, options",
    [
        ("train_tokenizer.py", ["--input=good.txt", "--html=./good.txt"]),
        ("show_tokens.py", ["--file=good.txt", "--tokenizers=byte", "--html=good.txt"]),
        ("eval.py", ["--choices=good.txt", "--json=good.txt"]),
        ("sample.py", ["--prompts=good.txt", "--out=good.txt"]),
    ],
)
def test_no_result_is_written_over_what_it_is_made_of(here, monkeypatch, program, options):
    text = '{"prompt": "a", "ctx": "a", "endings": ["b", "c"], "label": 0}\n'
    (here / "good.txt").write_text(text)
    with pytest.raises(UserError, match=r"good\.txt: it is an input; name another file"):
        call(monkeypatch, program, *options)
    assert (here / "good.txt").read_text() == text
