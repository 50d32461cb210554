"""Every prepare script as a program, from text to data/<name>/.

Scripts run from a copy of the repository's data side, so that no test writes into the repository.
"""

import gzip
import hashlib
import http.server
import json
import pickle
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Result, assert_one_line_error, run_command
from shared_data import need_vocabulary, shared
from test_readers import TEXTS, split_of, write_inputs
from test_writer import documents, leftovers, read

from bonsai.errors import UserError
from bonsai.readers import Options, read_pieces
from bonsai.tokenizers import BPETokenizer, from_dict, get

OFFLINE = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    "http://127.0.0.1:9",  # the discard port: nothing listens
)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of what the prepare scripts need; their default output stays in it."""
    house = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "configurator.py", house)
    unprepared = shutil.ignore_patterns(
        "__pycache__", "*.bin", "*.tmp", "meta.*", "input.txt", "downloads"
    )
    for part in ("bonsai", "data"):
        shutil.copytree(ROOT / part, house / part, ignore=unprepared)
    return house


@pytest.fixture
def prepare(house, tmp_path):
    """prepare("custom", "--input=x", ...) runs data/custom/prepare.py with --out=tmp_path/out."""

    def prepare(name: str, *args, env=None, **options) -> Result:
        script = house / "data" / name / "prepare.py"
        command = [sys.executable, script, f"--out={tmp_path / 'out'}", *args]
        return run_command(list(map(str, command)), tmp_path, env, **options)

    return prepare


# ---- the scripts ----


def test_python_stdlib(prepare, house, out):
    start = time.time()
    result = prepare("python_stdlib")
    assert result.rc == 0, result
    assert time.time() - start < 10
    assert "train has" in result.stdout and f"--dataset={out}" in result.stdout
    meta, ids = read(out)
    assert (meta["vocab_size"], meta["eot"], meta["dtype"]) == (257, 256, "uint16")
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    assert 0.02 < val["bytes"] / train["bytes"] < 0.15
    assert train["bytes"] + val["bytes"] > 3_000_000
    for name, split in meta["splits"].items():
        assert (ids[name] == 256).sum() == split["documents"]
        assert split["tokens"] == split["bytes"] + split["documents"]
    source = np.frombuffer(Path(json.__file__).read_bytes(), np.uint8)  # a file we know is there
    assert any(source.astype("<u2").tobytes() in split.tobytes() for split in ids.values())
    again = run_command([sys.executable, str(house / "data/python_stdlib/prepare.py")], out)
    assert again.rc == 0 and "next: " in again.stdout and str(out) not in again.stdout
    assert read(house / "data/python_stdlib")[0]["splits"] == meta["splits"]


def test_python_stdlib_of_a_folder(prepare, tmp_path, out):
    library = tmp_path / "lib"
    files = {f"m{i}.py": f"x = {i}\n".encode() for i in range(40)}
    files |= {"latin.py": b"# caf\xe9\n", "pkg/__init__.py": b"", "pkg/a.py": b"pass\n"}
    skipped = ("test/t.py", "pkg/tests/t.py", "site-packages/p.py", "_sysconfigdata_x.py", "n.txt")
    for name, data in {**files, **dict.fromkeys(skipped, b"no")}.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(data)
    result = prepare("python_stdlib", f"--input={library}", "--val_fraction=0.2")
    assert result.rc == 0, result
    _, ids = read(out)
    found = [
        bytes(part[:-1].tolist())
        for split in ids.values()
        for part in np.split(split, np.flatnonzero(split == 256)[:-1] + 1)
    ]
    assert sorted(found) == sorted(data for data in files.values() if data)


def test_shakespeare_char_on_any_text(prepare, tmp_path, out):
    text = "".join(f"Zeile {i}: größer & schöner\n" for i in range(300))
    (tmp_path / "my.text").write_text(text, encoding="utf-8")
    result = prepare("shakespeare_char", "--input=my.text")
    assert result.rc == 0, result
    chars = sorted(set(text))
    ids, border = [chars.index(c) for c in text], int(len(text) * 0.9)
    meta, splits = read(out)
    assert splits["train"].tolist() == ids[:border] and splits["val"].tolist() == ids[border:]
    assert meta["tokenizer"] == {"type": "char", "chars": chars} and meta["eot"] is None
    assert meta["splits"]["val"]["bytes"] == len(text[border:].encode())
    with open(out / "meta.pkl", "rb") as f:  # nanoGPT's own file
        assert pickle.load(f) == {
            "vocab_size": len(chars),
            "stoi": {c: i for i, c in enumerate(chars)},
            "itos": dict(enumerate(chars)),
        }


def test_shakespeare_char_as_nanogpt(prepare, out):
    """Hashes of the files that nanoGPT's script makes of Tiny Shakespeare."""
    result = prepare("shakespeare_char", f"--input={shared('data/tinyshakespeare.txt')}")
    assert result.rc == 0, result
    assert "train has 1,003,854 tokens" in result.stdout
    assert "val has 111,540 tokens" in result.stdout
    meta, _ = read(out)
    assert meta["vocab_size"] == 65
    assert meta["splits"]["train"]["sha256"][0].startswith("6ec305602a99ac28")
    assert meta["splits"]["val"]["sha256"][0].startswith("d37d30cc0c8327c2")


def test_shakespeare_as_nanogpt(prepare, house, out):
    need_vocabulary()
    text = shared("data/tinyshakespeare.txt")
    shutil.copy(text, house / "data/shakespeare/input.txt")  # is found there, as by nanoGPT
    result = prepare("shakespeare", env=OFFLINE)
    (house / "data/shakespeare/input.txt").unlink()
    assert result.rc == 0, result
    assert "train has 301,966 tokens" in result.stdout
    assert "val has 36,059 tokens" in result.stdout
    meta, _ = read(out)
    assert meta["splits"]["train"]["sha256"][0].startswith("502a2bdc8210d1ac")
    assert meta["splits"]["val"]["sha256"][0].startswith("68a53422394c26a6")
    assert not (out / "meta.pkl").exists()


def test_shakespeare_on_any_text(prepare, tmp_path, out):
    need_vocabulary()
    text = "To be, or not to be:\nthat is the <|endoftext|> question. " * 30
    (tmp_path / "my.txt").write_text(text)
    assert prepare("shakespeare", "--input=my.txt").rc == 0
    _, ids = read(out)
    gpt2, border = get("gpt2"), int(len(text) * 0.9)
    assert ids["train"].tolist() == gpt2.encode(text[:border])
    assert ids["val"].tolist() == gpt2.encode(text[border:])


@pytest.mark.parametrize("name", ["docs.parquet", "docs.jsonl.gz"])
def test_openwebtext_as_nanogpt(prepare, tmp_path, out, name):
    """The documents in the order of datasets' own split, each followed by 50256."""
    need_vocabulary()
    datasets = pytest.importorskip("datasets")
    texts = [*TEXTS, "", "again <|endoftext|> again"]
    path = write_inputs(tmp_path / "in", texts)[name]
    result = prepare("openwebtext", f"--input={path}", env=OFFLINE)
    assert result.rc == 0, result
    both = datasets.Dataset.from_dict({"text": texts}).train_test_split(
        test_size=0.0005, seed=2357, shuffle=True
    )
    meta, ids = read(out)
    for split, part in (("train", both["train"]), ("val", both["test"])):
        assert ids[split].tolist() == [
            i for text in part["text"] for i in [*get("gpt2").encode(text), 50256]
        ]
    assert meta["splits"]["train"]["documents"] == len(texts) - 1
    assert leftovers(out) == ["meta.json", "train.bin", "val.bin"]


def test_fineweb_from_local_shards(prepare, tmp_path, out):
    need_vocabulary()
    write_inputs(tmp_path / "a", TEXTS[:40])
    write_inputs(tmp_path / "b", TEXTS[40:])
    result = prepare("fineweb", "--input=a/docs.parquet,b/docs.parquet", "--val_fraction=0.1")
    assert result.rc == 0, result
    texts = documents(out)
    assert sorted(texts["train"] + texts["val"]) == sorted(TEXTS)
    assert len(texts["val"]) == 6
    assert [t for t in TEXTS if t in texts["train"]] == texts["train"]  # their order stays
    result = prepare("fineweb", "--input=a/docs.parquet,b/docs.parquet", "--shards=1")
    assert sum(len(part) for part in documents(out).values()) == 40


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: a list of files, and the files."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012 - set by the test

    def do_GET(self):
        path, status, headers = self.path.split("?")[0], 200, {}
        name = path.split("/main/")[-1]
        if path.startswith("/api/") and "/tree/main" in path:
            rows = [{"type": "file", "path": p, "size": len(d)} for p, d in self.files.items()]
            body = json.dumps([*rows, {"type": "directory", "path": "sample", "size": 0}]).encode()
        elif "/resolve/" in path and name in self.files:
            body = self.files[name]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "c" * 40}
        elif path == "/short.txt":
            body, headers = b"cut", {"Content-Length": "1000", "Connection": "close"}
        elif path == "/text.txt":
            body = "".join(TEXTS).encode()
        else:
            body, status = b"", 404
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_downloads_from_the_hub(prepare, tmp_path, out, hub):
    need_vocabulary()
    pytest.importorskip("huggingface_hub")
    paths = ("sample/10BT/001.parquet", "sample/10BT/000.parquet")
    for path, texts in zip(paths, (TEXTS[40:], TEXTS[:40])):
        file = write_inputs(tmp_path / path[-11:-8], texts)["docs.parquet"]
        Hub.files[path] = file.read_bytes()
    env = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    env["no_proxy"] = "127.0.0.1"
    result = prepare("fineweb", "--tokenizer=byte", env=env)
    assert result.rc == 0, result
    texts = documents(out)
    assert sorted(texts["train"] + texts["val"]) == sorted(TEXTS)
    assert texts["train"] == [t for t in TEXTS if t in texts["train"]]  # shards in sorted order
    assert leftovers(out) == ["meta.json", "train.bin", "val.bin"]
    result = prepare("fineweb", "--tokenizer=byte", "--shards=1", "--keep=True", env=env)
    assert (out / "downloads/sample/10BT/000.parquet").exists(), result
    assert not (out / "downloads/sample/10BT/001.parquet").exists()
    shutil.rmtree(out)
    result = prepare("openwebtext", "--revision=main", env=env)
    assert result.rc == 0, result
    texts = documents(out)
    assert sorted(texts["train"] + texts["val"]) == sorted(TEXTS)
    assert leftovers(out) == ["meta.json", "train.bin", "val.bin"]


def test_custom_from_the_hub(prepare, tmp_path, out, hub, monkeypatch):
    pytest.importorskip("huggingface_hub")
    path = write_inputs(tmp_path / "in", TEXTS)["docs.jsonl"]
    rows = path.read_bytes().splitlines(keepends=True)
    files = {"data/train-0.jsonl": rows[:40], "data/train-1.jsonl": rows[40:], "test.jsonl": rows}
    monkeypatch.setattr(Hub, "files", {name: b"".join(data) for name, data in files.items()})
    env = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    env["no_proxy"] = "127.0.0.1"
    result = prepare("custom", "--hub=some/texts", "--tokenizer=byte", env=env)
    assert result.rc == 0 and "2 of the 3 files" in result.stdout, result
    texts = documents(out)
    assert sorted(texts["train"] + texts["val"]) == sorted(TEXTS)
    assert leftovers(out) == ["meta.json", "train.bin", "val.bin"]
    shutil.rmtree(out)
    result = prepare("custom", "--hub=some/texts", "--files=x*", "--tokenizer=byte", env=env)
    assert_one_line_error(result, "x*", "data/train-0.jsonl")


def test_download_of_a_text(prepare, house, out, hub):
    env = {"no_proxy": "127.0.0.1"}
    result = prepare("shakespeare_char", f"--url={hub}/short.txt", env=env)
    assert_one_line_error(result, "3 of 1000 bytes", "--input=")
    result = prepare("shakespeare_char", f"--url={hub}/none.txt", env=env)
    assert_one_line_error(result, "404", "--input=")
    assert leftovers(house / "data/shakespeare_char") == ["prepare.py", "readme.md"]
    result = prepare("shakespeare_char", f"--url={hub}/text.txt", env=env)
    assert result.rc == 0, result
    assert (house / "data/shakespeare_char/input.txt").read_text("utf-8") == "".join(TEXTS)
    assert prepare("shakespeare_char", env=OFFLINE).rc == 0  # the second time from there
    (house / "data/shakespeare_char/input.txt").unlink()


@pytest.mark.parametrize("name", ["shakespeare_char", "shakespeare", "openwebtext", "fineweb"])
def test_without_a_network(prepare, out, name):
    start = time.time()
    result = prepare(name, env={**OFFLINE, "no_proxy": "", "NO_PROXY": ""})
    assert_one_line_error(result, "--input=", "cannot download")
    assert time.time() - start < 20
    assert not out.exists()


def test_without_a_vocabulary(prepare, tmp_path, out):
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    env = {**OFFLINE, "no_proxy": "", "NO_PROXY": "", "TIKTOKEN_CACHE_DIR": str(tmp_path / "none")}
    result = prepare("custom", "--input=a.txt", env=env)
    assert_one_line_error(result, "TIKTOKEN_CACHE_DIR")
    assert not out.exists()


# ---- own text ----


FORMATS = ["docs.jsonl", "docs.jsonl.gz", "docs.jsonl.zst", "docs.parquet", "txt"]


@pytest.mark.parametrize("name", FORMATS)
def test_custom_every_format(prepare, tmp_path, out, name):
    path = write_inputs(tmp_path / "in", TEXTS, column="body")[name]
    result = prepare("custom", f"--input={path}", "--tokenizer=byte", "--text_column=body")
    assert result.rc == 0, result
    texts = documents(out)
    expected = split_of(TEXTS, 0.05)
    assert texts["val"] == [t for t in TEXTS if expected[t] == "val"]
    assert texts["train"] == [t for t in TEXTS if expected[t] == "train"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "gpt4", "byte"])
def test_custom_one_document_in_every_tokenizer(prepare, tmp_path, out, tokenizer):
    if tokenizer != "byte":
        need_vocabulary(tokenizer)
    text = "".join(f"{i} words of a line, é😀\n" for i in range(2000))
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    result = prepare("custom", "--input=one.txt", f"--tokenizer={tokenizer}")
    assert result.rc == 0, result
    meta, _ = read(out)
    assert meta["dtype"] == ("uint32" if tokenizer == "gpt4" else "uint16")
    texts = documents(out)
    assert texts["train"] + texts["val"] == [texts["train"][0], texts["val"][0]]
    assert texts["train"][0] + texts["val"][0] == text
    assert 0.04 < meta["splits"]["val"]["bytes"] / len(text.encode()) <= 0.05


def test_custom_characters(prepare, tmp_path, out):
    write_inputs(tmp_path / "in", ["bca", "cab", "aab é"])
    result = prepare("custom", "--input=in/docs.jsonl", "--tokenizer=char")
    assert result.rc == 0, result
    meta, ids = read(out)
    assert meta["tokenizer"]["chars"] == ["\n", " ", "a", "b", "c", "é"]
    tokenizer = from_dict(meta["tokenizer"])
    text = tokenizer.decode(ids["train"]) + tokenizer.decode(ids["val"])
    assert sorted(text.splitlines()) == ["aab é", "bca", "cab"]  # a line end between documents
    (tmp_path / "one.txt").write_text("abcabc" * 20)
    assert prepare("custom", "--input=one.txt", "--tokenizer=char").rc == 0
    assert read(out)[0]["tokenizer"]["chars"] == ["a", "b", "c"]
    assert (out / "meta.pkl").exists()


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizer"])
def test_custom_in_an_own_vocabulary(prepare, tmp_path, out, encoder):
    """A vocabulary from train_tokenizer.py, with and without the library; workers do not matter."""
    if encoder == "gigatoken":
        pytest.importorskip("gigatoken")
    tokenizer = BPETokenizer.train(TEXTS, 300)
    (tmp_path / "own.json").write_text(json.dumps(tokenizer.to_dict()))
    texts = [*TEXTS, "look <|endoftext|> alike"]
    path = write_inputs(tmp_path / "in", texts)["docs.jsonl"]
    for workers in (1, 3):
        args = ["--tokenizer=own.json", f"--encoder={encoder}", f"--workers={workers}"]
        result = prepare("custom", f"--input={path}", *args, "--shard_tokens=0")
        assert result.rc == 0, result
        meta, ids = read(out)
        assert meta["tokenizer"] == tokenizer.to_dict()
        for split, expected in split_of(texts, 0.05).items():
            wanted = np.array([*tokenizer.encode(split), tokenizer.eot], "<u2").tobytes()
            assert wanted in ids[expected].tobytes()
        assert sum(map(len, ids.values())) == sum(len(tokenizer.encode(t)) + 1 for t in texts)
    args = [f"--tokenizer={out / 'meta.json'}", "--encoder=gigatoken"]  # of another data set
    result = run_command(
        [sys.executable, str(ROOT / "data/custom/prepare.py"), f"--input={path}"]
        + [*args, f"--out={tmp_path / 'again'}", "--shard_tokens=500"],
        tmp_path,
    )
    if encoder == "gigatoken":
        assert result.rc == 0 and "train_00000.bin ..." in result.stdout, result


def test_custom_by_name_and_again(house, tmp_path):
    """--name writes to data/<name>/ from any folder; a second run gives the same files."""
    write_inputs(tmp_path / "in", TEXTS)
    script = str(house / "data/custom/prepare.py")
    command = [sys.executable, script, "--input=in/docs.jsonl", "--name=mine", "--tokenizer=byte"]
    result = run_command(command, tmp_path)
    assert result.rc == 0 and "--dataset=mine" in result.stdout, result
    first = read(house / "data/mine")[0]
    assert first["name"] == "mine"
    assert run_command(command, tmp_path).rc == 0
    assert read(house / "data/mine")[0] == first


def test_a_full_disk(prepare, out):
    resource = pytest.importorskip("resource")

    def at_most_a_megabyte():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = prepare("python_stdlib", preexec_fn=at_most_a_megabyte)
    assert_one_line_error(result, "disk is full", "train.bin.tmp", "--out=")
    assert not out.exists()


def test_a_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert_one_line_error(prepare("python_stdlib"), "cannot write into")


GOOD = '{"text": "a good line"}\n'
ZSTD = bytes.fromhex("28b52ffd2018c100007b2274657874223a20226120676f6f64206c696e65227d0a")  # GOOD
BAD = {  # what is wrong: (file, its content, arguments, words of the message)
    "no input": ("", b"", [], ["--input="]),
    "no such file": ("", b"", ["--input=none.txt"], ["none.txt"]),
    "nothing matches": ("a.txt", b"abc", ["--input=*.jsonl"], ["*.jsonl"]),
    "empty folder": ("a/b.md", b"abc", ["--input=a"], ["folder", ".parquet"]),
    "unknown ending": ("a.doc", b"abc", ["--input=a.doc"], ["a.doc", ".txt"]),
    "empty file": ("a.txt", b"", ["--input=a.txt"], ["a.txt", "empty"]),
    "only a space": ("a.jsonl", b'{"text": ""}\n', ["--input=a.jsonl"], ["no text"]),
    "not UTF-8": ("a.txt", b"abc\xff", ["--input=a.txt"], ["a.txt", "byte 3"]),
    "not UTF-8 in JSON": (
        "a.jsonl",
        GOOD.encode() + b'{"text": "\xff"}',
        ["--input=a.jsonl"],
        ["byte 34"],
    ),
    "broken JSON": ("a.jsonl", (GOOD * 2 + "{oops\n").encode(), ["--input=a.jsonl"], ["line 3"]),
    "no object": ("a.jsonl", b"[1]\n", ["--input=a.jsonl"], ["line 1", "object"]),
    "not text": ("a.jsonl", b'{"text": 3}\n', ["--input=a.jsonl"], ["line 1", "3"]),
    "no column": (
        "a.jsonl",
        (GOOD * 2 + '{"body": ""}').encode(),
        ["--input=a.jsonl"],
        ["line 3", "'text'", "'body'", "--text_column"],
    ),
    "cut zst": ("a.jsonl.zst", ZSTD[:-3], ["--input=*.zst"], ["a.jsonl.zst", "short"]),
    "no zst": ("a.txt.zst", GOOD.encode(), ["--input=a.txt.zst"], ["a.txt.zst", "zstd"]),
    "encoder": ("a.txt", b"abc", ["--input=a.txt", "--encoder=fast"], ["fast", "gigatoken"]),
    "shards": ("a.txt", b"abc", ["--input=a.txt", "--shard_tokens=-1"], ["shard_tokens"]),
    "both": ("a.txt", b"abc", ["--input=a.txt", "--hub=a/b"], ["--input=", "--hub="]),
    "cut gz": ("a.jsonl.gz", gzip.compress(GOOD.encode() * 9)[:-12], ["--input=*.gz"], ["short"]),
    "no gz": ("a.jsonl.gz", GOOD.encode(), ["--input=a.jsonl.gz"], ["a.jsonl.gz", "gzip"]),
    "no parquet": ("a.parquet", b"PAR1 and so on", ["--input=a.parquet"], ["a.parquet"]),
    "same documents": ("a.jsonl", (GOOD * 5).encode(), ["--input=a.jsonl"], ["same"]),
    "too little": ("a.txt", b"a", ["--input=a.txt"], ["val"]),
    "fraction": ("a.txt", b"abc", ["--input=a.txt", "--val_fraction=1.5"], ["1.5"]),
    "tokenizer": ("a.txt", b"abc", ["--input=a.txt", "--tokenizer=gpt5"], ["gpt5", "byte"]),
    "name": ("a.txt", b"abc", ["--input=a.txt", "--name=../up"], ["--name="]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(prepare, tmp_path, out, what):
    name, content, args, words = BAD[what]
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    tokenizer = [] if "--tokenizer=gpt5" in args else ["--tokenizer=byte"]
    assert_one_line_error(prepare("custom", *tokenizer, *args), *words)
    assert not out.exists()


def test_bad_parquet_is_one_line(tmp_path):
    path = write_inputs(tmp_path / "in", TEXTS)["docs.parquet"]
    for column, words in (("body", "'id', 'text'.*--text_column"), ("id", "no text but int64")):
        with pytest.raises(UserError, match=words):
            list(read_pieces([path], Options(column)))
    data = bytearray(path.read_bytes())
    data[100:600] = bytes(500)
    for content in (path.read_bytes()[:-50], bytes(data)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"docs\.parquet"):
            list(read_pieces([path]))


def test_name_is_needed(house, tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    script = str(house / "data/custom/prepare.py")
    for args in ([], ["--name=a/b"], ["--name=.."], ["--name=a b"]):
        result = run_command([sys.executable, script, "--input=a.txt", *args], tmp_path)
        assert_one_line_error(result, "--name=")
