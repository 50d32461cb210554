"""train_tokenizer.py and show_tokens.py as their users run them; the commands of the docs."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.html_text import TextOf
from helpers.programs import run_command
from helpers.settings import settings as settings_of
from helpers.shared_data import ROOT, need_vocabulary

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, TOKENIZERS, BPETokenizer, get, patterns
from bonsai.tokenizers.samples import LANGUAGES

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n" * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT + "".join(LANGUAGES.values()), encoding="utf-8")
    return tmp_path


def program(folder, name: str, *arguments: str, status: int = 0, stdin: str = "") -> str:
    """stdout of a program run in `folder`; of one that fails, its one line on stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode in ((1, 2) if status == 1 else (status,)), done.stdout + done.stderr
    if status:
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return done.stdout


def train(folder, *arguments: str, status: int = 0) -> str:
    return program(folder, "train_tokenizer.py", *arguments, status=status)


# ---- train_tokenizer.py ----


def test_a_vocabulary_with_its_report(folder):
    said = train(
        folder,
        "--input=text.txt",
        "--vocab_size=600",
        "--out=own.json",
        "--tiktoken_out=own.tiktoken",
        "--hf_out=hf/tokenizer.json",
        "--html=own.html",
        "--curve_png=curve.png",
        "--compare=byte",
    )
    assert "wrote own.json: 600 tokens" in said
    for part in ("your text", "Hindi", "longest tokens", "merges as they were", "do not occur"):
        assert part in said
    assert re.search(r"^512 +0\.\d+ +0\.\d+ +0\.39M$", said, re.M)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    tokenizer = get(folder / "own.json")
    assert tokenizer.vocab_size == 600 and tokenizer.eot == 599
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert get(folder / "hf" / "tokenizer.json").to_dict() == tokenizer.to_dict()
    for odd in ("--type=sentencepiece_bpe", r"--pattern=\w+"):
        said = train(folder, "--input=text.txt", "--hf_out=hf/b.json", odd, status=1)
        assert "--hf_out takes --type=bpe" in said
    said = train(folder, "--input=text.txt", "--out=a.json", "--hf_out=hf/../a.json", status=1)
    assert "two results cannot be written to one file" in said

    said = train(folder, "--ranks=own.tiktoken", "--out=again.json")
    assert get(folder / "again.json").to_dict() == tokenizer.to_dict()
    for pattern in ("gpt4", "none"):
        train(
            folder,
            "--input=text.txt",
            "--vocab_size=600",
            "--fast=False",
            f"--pattern={pattern}",
            "--stats=False",
            f"--out={pattern}.json",
        )
    assert get(folder / "gpt4.json").to_dict() == tokenizer.to_dict()
    assert get(folder / "none.json").pattern is None


def test_little_text_gives_few_tokens(folder):
    (folder / "few.txt").write_text("one one one")
    said = train(folder, "--input=few.txt", "--compare=")
    assert "there is nothing left to merge" in said
    assert get(folder / "tokenizer.json").vocab_size < 270


def test_sentencepiece(folder):
    said = train(
        folder,
        "--input=text.txt",
        "--vocab_size=700",
        "--type=sentencepiece_bpe",
        "--compare=",
    )
    assert "wrote tokenizer.json: 700 tokens" in said
    tokenizer = get(folder / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("kind", ["char", "table"])
def test_what_a_class_makes_from_texts(folder, kind):
    """As a tokenizer of one's own is made, which is in the same table."""
    said = train(folder, "--input=text.txt", f"--type={kind}", "--compare=")
    assert "fewer than 4,096: in this text there is nothing left to learn" in said
    tokenizer = get(folder / "tokenizer.json")
    assert type(tokenizer) is TOKENIZERS[kind]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input=none.txt", "none.txt"),
        ("", "--input"),
        ("--input=empty.txt", "is empty"),
        ("--input=latin.txt", "not UTF-8 at byte 3"),
        ("--input=text.txt --vocab_size=255", "at least 256"),
        ("--input=text.txt --vocab_size=256", "at least 257"),
        ("--input=text.txt --pattern=(", "pattern"),
        ("--input=text.txt --pattern=(a)", "group"),
        ("--input=text.txt --pattern=gpt5", "no pattern is called 'gpt5'"),
        ("--input=text.txt --type=words", "words"),
        ("--input=text.txt --out=own.txt", ".json"),
        ("--input=text.txt --curve_png=curve", "a picture is written to a .png, .svg or .pdf file"),
        ("--input=text.txt --curve_png=curve.jsonl", "curve_png is 'curve.jsonl': a picture"),
        ("--input=text.txt --stats=False --out=text.txt/own.json", "cannot write"),
        ("--input=text.txt --html=text.txt/page.html", "cannot write"),  # and no tokenizer either
        ("--input=rows.jsonl", "text_column"),
        ("--ranks=none.tiktoken", "none.tiktoken"),
        ("--ranks=text.txt", "line 1"),
        ("--input=text.txt --vocab_size=9999 --type=sentencepiece_bpe", "vocab_size="),
        ("--input=text.txt --vocab_size=300 --type=sentencepiece_bpe", "at least"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, arguments, message):
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "rows.jsonl").write_text('{"body": "text"}\n')
    before = sorted(folder.iterdir())
    assert message in train(folder, *arguments.split(), status=1)
    assert sorted(folder.iterdir()) == before


def test_without_the_library_nothing_asks_for_it(monkeypatch, capsys):
    """--fast=False holds for the curve too, which once ended in the advice to say --fast=False."""
    monkeypatch.setattr(patterns, "LONG_BLANK", 50)
    texts = ["some text, " * 9 + " " * 60 + "and more " * 9] * 2
    program = runpy.run_path(str(ROOT / "train_tokenizer.py"), run_name="not main")
    print_report, c = program["print_report"], settings_of("train_tokenizer.py", ["--compare="])
    own = BPETokenizer.train(texts, 300, fast=False)
    with pytest.raises(UserError, match="--fast=False"):
        print_report(c, own, texts)
    c["fast"] = False
    print_report(c, own, texts)
    assert "tokens per byte" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_an_escape(folder, encoding):
    (folder / "b.txt").write_text("größer → 你好\n" * 30, encoding="utf-8")
    for command in (
        ["show_tokens.py", "--file=b.txt", "--tokenizers=byte"],
        ["train_tokenizer.py", "--input=b.txt", "--vocab_size=300", "--compare=byte"],
    ):
        result = run_command(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            folder,
            {"PYTHONIOENCODING": encoding},
            encoding=encoding,
        )
        assert result.rc == 0 and not result.stderr, result
        assert ("你" in result.stdout or "·" in result.stdout) == (encoding != "ascii")
        assert ("\\u" in result.stdout) == (encoding != "utf-8")


# ---- show_tokens.py ----


def test_show_tokens(folder):
    for name in ("gpt2", "gpt4"):
        need_vocabulary(name)
    hello = "hello|·world"
    assert hello in program(folder, "show_tokens.py", "--text=hello world")
    said = program(folder, "show_tokens.py", "--ids", "--tokenizers=gpt2", stdin="hello world")
    assert said.endswith(f"{hello}\n31373 995\n")
    said = program(folder, "show_tokens.py", f"--text=a{EOT_TEXT}", "--special", "--ids")
    assert "64 50256" in said and "64 100257" in said
    program(folder, "show_tokens.py", "--file=text.txt", "--html=page.html")
    parsed = TextOf((folder / "page.html").read_text(encoding="utf-8"))
    assert "gpt2: " in parsed.text and "gpt4: " in parsed.text and parsed.open == []
    for arguments, message in [
        (["--file=none.txt"], "none.txt"),
        (["--text=a", "--tokenizers=none"], "no tokenizer"),
        (["--text=a", "--tokenizers="], "--tokenizers"),
        (["--text=a", "--file=text.txt"], "not both"),
        (["--text=a", "--html=text.txt/page.html"], "cannot write"),
    ]:
        assert message in program(folder, "show_tokens.py", *arguments, status=1)
    assert "not UTF-8" in program(folder, "show_tokens.py", stdin="caf\udce9", status=1)


# ---- the documentation ----


def test_the_commands_of_the_documentation_print_what_it_says(folder):
    """Blocks of commands, each followed by what they print, unless that depends on the version of
    Python (```text example). Commands that train a model are not run here."""
    for name in ("gpt2", "gpt4"):
        need_vocabulary(name)
    page = (ROOT / "docs" / "tokenization.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```\n(?:\n```(text[ a-z]*)\n(.*?)```)?", page, re.S)
    assert len(blocks) >= 12

    def run(block: str) -> str:
        printed = []
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] == "python"
            if words[1] in ("train.py", "sample.py", "data/custom/prepare.py"):
                continue
            said = program(folder, *words[1:]).splitlines()
            printed.append("\n".join(s for s in said if not s.startswith("settings: ")))
        return "\n\n".join(text.strip("\n") for text in printed if text.strip())

    first, others = blocks[0], blocks[1:]
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]  # writes page.txt
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    said = run(first[0])
    ratio = float(re.search(r"^your text .* (1\.\d\d) \(", said, re.M)[1])
    assert 1.2 < ratio < 1.35  # about a fifth shorter, whatever the version
    viewing = [b for b in others if "train_tokenizer" not in b[0]]
    training = [b for b in others if "train_tokenizer" in b[0]]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda block: run(block[0]), viewing))
    results += [run(block[0]) for block in training]  # one needs the files of the one before
    for (command, kind, expected), said in zip(viewing + training, results):
        if kind == "text":
            assert said == expected.strip("\n"), command


def test_a_tokenizer_of_ones_own_prepares_data(folder):
    train(folder, "--input=text.txt", "--vocab_size=400", "--out=own.json", "--stats=False")
    program(
        folder,
        "data/custom/prepare.py",
        "--input=text.txt",
        "--tokenizer=own.json",
        f"--out={folder / 'data'}",
    )
    meta = json.loads((folder / "data" / "meta.json").read_text())
    assert meta["vocab_size"] == 400 and meta["tokenizer"]["type"] == "bpe"
    assert get(folder / "data" / "meta.json").to_dict() == get(folder / "own.json").to_dict()
