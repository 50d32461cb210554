"""sample.py as its users run it: a process, piped or on a terminal, with a tiny checkpoint."""

import contextlib
import io
import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.made_model import save
from helpers.programs import ROOT, Result, program_module, run_program

from bonsai.engine import SamplingParams
from bonsai.engine.cuda.steps import CapturedSteps
from bonsai.models.table import describe_model
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from model import GPT, GPTConfig

SAMPLE = ROOT / "sample.py"
CHARS = CharTokenizer.from_text("\n abcdefghij.é€🙂")
DASHES = "\n---------------\n"
BLOCK = 24


def tiny(vocab_size: int) -> GPT:
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=BLOCK, vocab_size=vocab_size))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.dim() >= 2 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def char_model() -> GPT:
    model = tiny(32)  # more rows than characters: padding, made far likelier than any character
    with torch.no_grad():
        n = CHARS.vocab_size
        model.lm_head.weight[n:] = 5 * model.lm_head.weight[: 32 - n]
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory, char_model) -> Path:
    return save(tmp_path_factory.mktemp("char") / "out", char_model, CHARS)


@pytest.fixture(scope="module")
def byte_run(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("byte") / "out", tiny(257), ByteTokenizer())


def command(*args) -> list[str]:
    return [sys.executable, str(SAMPLE), "--device=cpu", *map(str, args)]


ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "TERM": "dumb"}


@pytest.fixture
def program():
    """sample.py as a module of this process."""
    return program_module("sample.py")


def sample(*args, cwd, status=0, stdin="") -> Result:
    words = ["--device=cpu", *args]
    done = run_program(words, cwd, {"TERM": "dumb"}, stdin, program="sample.py")
    assert done.rc in ((1, 2) if status == 1 else (status,)), done
    # the configurator's line and the samples share stdout
    done.stdout = re.sub(r"^settings: .*\n", "", done.stdout)
    return done


def texts(*args, cwd) -> list[str]:
    *answers, rest = sample(*args, cwd=cwd).stdout.split(DASHES)
    assert rest == ""
    return answers


def read_until(fd: int, mark: str, timeout: float = 30.0) -> str:
    """What a process writes to its terminal, up to `mark` or ('' never comes) its end."""
    out, give_up = b"", time.monotonic() + timeout
    with contextlib.suppress(OSError):  # EIO: the other side has closed
        while not (mark and mark in out.decode(errors="replace")):
            ready, _, _ = select.select([fd], [], [], max(0, give_up - time.monotonic()))
            assert ready, f"nothing more came after {out[-2000:]}"
            if not (part := os.read(fd, 4096)):
                break
            out += part
    return out.decode("utf-8").replace("\r\n", "\n")  # strict: characters arrive whole


@contextlib.contextmanager
def terminal(*args, cwd, stdin=False):
    """A running sample.py whose stdout (and stdin) is a terminal: process, our end of it."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    source = theirs if stdin else subprocess.DEVNULL
    process = subprocess.Popen(
        command(*args), stdin=source, stdout=theirs, stderr=subprocess.PIPE, env=ENV, cwd=cwd
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
        os.close(ours)


def on_terminal(*args, cwd) -> str:
    with terminal(*args, cwd=cwd) as (process, ours):
        out = read_until(ours, "")
        assert process.wait(30) == 0, process.stderr.read()
    return re.sub(r"^settings: .*\n", "", out)


# ---- samples ----


def test_samples_piped_on_a_terminal_and_without_cache_are_the_same(run, tmp_path):
    args = (f"--out_dir={run}", "--num_samples=3", "--max_new_tokens=40", "--start=abc")
    piped = texts(*args, cwd=tmp_path)
    assert len(piped) == 3 == len(set(piped))
    for text in piped:
        assert text.startswith("abc") and len(text) == 43  # beyond the context of 24
        assert set(text) <= set(CHARS.chars)  # no padding
    assert on_terminal(*args, cwd=tmp_path) == "".join(text + DASHES for text in piped)
    other_way = (f"--init_from={run}", "--num_samples=1", "--kv_cache=False")
    assert texts(*args, *other_way, cwd=tmp_path) == piped[:1]
    assert texts(*args, "--seed=7", cwd=tmp_path) != piped


def test_texts_by_graphs_are_the_same(program, run, tmp_path, monkeypatch, capsys):
    """As on a GPU, with calls where a graph would be replayed: side by side, and many prompts."""
    jobs = [{"prompt": "ab", "n": 3}, {"prompt": "jé🙂", "temperature": 0}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, jobs)), encoding="utf-8")
    launched, launch = [], CapturedSteps.launch
    monkeypatch.setattr(
        CapturedSteps, "launch", lambda *args: (launched.append(args), launch(*args))[1]
    )

    def written(**settings) -> str:
        launched.clear()
        program.main(out_dir=str(run), device="cpu", max_new_tokens=40, num_samples=3, **settings)
        return re.sub(r"^settings: .*\n", "", capsys.readouterr().out)

    for way in (
        dict(start="abc"),
        dict(start="abc", on_full="refill"),
        dict(prompts=str(tmp_path / "in.jsonl")),
    ):
        want = written(**way)
        monkeypatch.setattr(Runtime, "captures", True)
        assert not launched
        assert written(**way) == want and launched
        assert written(**way, cuda_graphs=False) == want and not launched
        monkeypatch.setattr(Runtime, "captures", False)


def greedy(model: GPT, start: str, count: int) -> str:
    """What temperature 0 must give: the likeliest character each time."""
    ids = torch.tensor([CHARS.encode(start)])
    for _ in range(count):
        logits = model(ids[:, -BLOCK:])[0][0, -1, : CHARS.vocab_size]
        ids = torch.cat((ids, logits.argmax().view(1, 1)), dim=1)
    return CHARS.decode(ids[0].tolist())


def test_a_start_from_a_file_continued_at_temperature_0(run, char_model, tmp_path):
    (tmp_path / "prompt.txt").write_text("jé🙂", encoding="utf-8")
    args = ("--temperature=0", "--max_new_tokens=40", "--start=FILE:prompt.txt", "--num_samples=2")
    got = texts(*args, f"--init_from={run / 'ckpt.pt'}", cwd=tmp_path)
    assert got == [greedy(char_model, "jé🙂", 40)] * 2


def test_nanogpts_settings_and_ours_together(run, tmp_path):
    args = "--dtype=bfloat16 --compile=False --top_k=0 --top_p=0.9 --temperature=1 --on_full=refill"
    got = texts(*args.split(), f"--out_dir={run}", "--max_new_tokens=60", cwd=tmp_path)
    assert [len(text) for text in got] == [61] * 10
    assert all(text.startswith("\n") for text in got)


def test_a_context_can_end_the_text_and_no_tokens_be_asked_for(run, tmp_path):
    args = (f"--out_dir={run}", "--num_samples=2", "--start=ab")
    assert [len(t) for t in texts(*args, "--on_full=stop", cwd=tmp_path)] == [BLOCK + 1] * 2
    assert texts(*args, "--max_new_tokens=0", cwd=tmp_path) == ["ab", "ab"]


def test_bytes_arrive_as_whole_characters_and_leave_the_terminal_alone(byte_run, tmp_path):
    args = (f"--out_dir={byte_run}", "--num_samples=2", "--max_new_tokens=200", "--top_k=0")
    args += ("--on_full=refill",)
    piped = "".join(text + DASHES for text in texts(*args, "--start=é", cwd=tmp_path))
    shown = on_terminal(*args, "--start=é", cwd=tmp_path)
    assert re.search(r"[\x00-\x08\x0b-\x1f]", piped)  # the case is worth testing
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    pictures = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | {127: 0x2421}
    assert shown == piped.translate(pictures | {c: 0xFFFD for c in range(128, 160)})


def test_end_of_text_in_the_start(byte_run, tmp_path):
    args = (f"--out_dir={byte_run}", "--num_samples=2", "--max_new_tokens=9")
    begun = texts(*args, "--start=<|endoftext|>", cwd=tmp_path)
    assert texts(*args, "--start=", cwd=tmp_path) == [t[len("<|endoftext|>") :] for t in begun]
    assert all(t.startswith("<|endoftext|>") for t in begun)


# ---- nanoGPT's checkpoints ----


def nanogpt_run(folder: Path, model: GPT, dataset: str) -> Path:
    """ckpt.pt with nanoGPT's keys alone, as torch.compile leaves them there."""
    folder.mkdir()
    state = {
        "model": {f"_orig_mod.{k}": v for k, v in model.state_dict().items()},
        "model_args": describe_model(model, "gpt")["model_args"],
        "iter_num": 5,
        "best_val_loss": torch.tensor(2.0),
        "config": {"dataset": dataset},
    }
    torch.save(state, folder / "ckpt.pt")
    return folder


def test_a_checkpoint_of_nanogpt_uses_its_data_folders_vocabulary(char_model, tmp_path):
    nanogpt_run(tmp_path / "out", char_model, "mine")
    (tmp_path / "data" / "mine").mkdir(parents=True)
    with open(tmp_path / "data" / "mine" / "meta.pkl", "wb") as f:
        pickle.dump(CHARS.nanogpt_meta(), f)
    args = ("--num_samples=1", "--max_new_tokens=20", "--temperature=0", "--start=f")
    assert texts(*args, cwd=tmp_path) == [greedy(char_model, "f", 20)]


@pytest.mark.parametrize("dataset", ["gone", "../outside"])
def test_a_vocabulary_that_is_not_found_is_said_so(char_model, tmp_path, dataset):
    """Without one it is GPT-2's, too large for this model; a path is not followed."""
    nanogpt_run(tmp_path / "out", char_model, dataset)
    (tmp_path / "outside").mkdir()
    with open(tmp_path / "outside" / "meta.pkl", "wb") as f:
        pickle.dump(CHARS.nanogpt_meta(), f)
    (tmp_path / "data").mkdir()
    done = sample(cwd=tmp_path, status=1)
    assert done.stderr.splitlines()[-1].startswith("error: out/ckpt.pt has 32 tokens, but its gpt2")


def test_a_vocabulary_without_a_line_break(tmp_path):
    """The default start is one; another beginning is found, and said."""
    save(tmp_path / "out", tiny(10), CharTokenizer.from_text("abcdefghij"))
    args = ("--num_samples=1", "--max_new_tokens=5")
    done = sample(*args, cwd=tmp_path)
    assert len(done.stdout.removesuffix(DASHES)) == 5 and "no line break" in done.stderr
    assert "'\\n'" in sample(*args, "--start=\n", cwd=tmp_path, status=1).stderr


def test_a_vocabulary_that_cannot_be_loaded_is_said(tmp_path):
    """GPT-2's is downloaded once. That it is not there is no lack of a line break in it."""
    save(tmp_path / "out", tiny(50257), GPT2Tokenizer())
    nothing = {"TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    arguments = ["--num_samples=1", "--max_new_tokens=5", "--device=cpu"]
    done = run_program(arguments, tmp_path, nothing, program="sample.py")
    assert done.rc == 1 and "no line break" not in done.stderr
    assert "error: cannot load the gpt2 vocabulary" in done.stderr.splitlines()[-1]


def test_quotes_are_text(run, tmp_path):
    """They are unknown to this vocabulary, so they must have arrived."""
    assert """'"'""" in sample(f"--out_dir={run}", '--start="ab"', cwd=tmp_path, status=1).stderr


# ---- many prompts ----


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_prompts_is_continued_side_by_side(run, char_model, tmp_path):
    jobs = [
        {"prompt": "jé🙂", "id": 7, "temperature": 0, "max_new_tokens": 15},
        {"prompt": "ab", "n": 3, "max_new_tokens": 5},
        {"prompt": "", "max_new_tokens": 0},
        {"prompt": "a", "max_new_tokens": 100},
    ]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, jobs)), encoding="utf-8")
    args = (f"--out_dir={run}", "--prompts=in.jsonl", "--batch_size=2", "--max_new_tokens=9")
    piped = sample(*args, cwd=tmp_path).stdout
    assert sample(*args, "--out=out.jsonl", "--batch_size=5", cwd=tmp_path).stdout == ""
    answers = jsonl(tmp_path / "out.jsonl")
    assert [json.loads(line) for line in piped.splitlines()] == answers  # however many at once
    assert [(a["prompt"], a["row"]) for a in answers] == [
        ("jé🙂", 0), ("ab", 0), ("ab", 1), ("ab", 2), ("", 0), ("a", 0),
    ]  # fmt: skip
    assert answers[0]["id"] == 7 and answers[0]["text"] == greedy(char_model, "jé🙂", 15)[3:]
    assert [a["tokens"] for a in answers] == [15, 5, 5, 5, 0, BLOCK]  # the context is full
    assert {a["finish"] for a in answers} == {"length"}
    one = ("--start=ab", "--num_samples=3", "--max_new_tokens=5")
    assert ["ab" + a["text"] for a in answers[1:4]] == texts(f"--out_dir={run}", *one, cwd=tmp_path)


def test_num_samples_counts_for_prompts_that_do_not_say_how_many(run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "n": 1}\n')
    options = (f"--out_dir={run}", "--prompts=in.jsonl", "--num_samples=2", "--max_new_tokens=3")
    said = map(json.loads, sample(*options, cwd=tmp_path).stdout.splitlines())
    assert [(a["prompt"], a["row"]) for a in said] == [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    "line, says",
    [
        ("nonsense", 'char 0); each line is an object such as {"prompt": "To be"}'),
        ('["a"]', "line 2: it must be an object"),
        ('{"text": "a"}', "line 2: it must be an object"),
        ('{"prompt": "a", "top_p": 2}', "line 2: top_p=2"),
        ('{"prompt": "a", "top_k": "many"}', "line 2: top_k='many' is not a number"),
        ('{"prompt": "a", "n": 1.5}', "line 2: n=1.5"),
        ('{"prompt": "a", "n": 0}', "prompt 2: n=0"),
        ('{"prompt": "a", "n": 1e5}', "line 2: n=100000.0 is not a number"),
        ('{"prompt": "a", "n": 100000000000}', "line 2: n=100000000000 must be at most 1,000,000"),
        ('{"prompt": "aXb"}', "prompt 2: "),
        (json.dumps({"prompt": "a" * 30}), "30 tokens, the context 24"),
    ],
)
def test_a_mistake_in_a_file_of_prompts_says_where(run, tmp_path, line, says):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' + line, encoding="utf-8")
    done = sample(f"--out_dir={run}", "--prompts=in.jsonl", cwd=tmp_path, status=1)
    assert says in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_key_that_is_nearly_a_setting_is_said(program, tmp_path, capsys):
    """Once, and not of those that only go into the answers."""
    line = '{"prompt": "a", "n": 2, "max_tokens": 3, "temprature": 1, "id": 5, "top_k": 1}\n'
    (tmp_path / "in.jsonl").write_text(2 * line)
    assert len(program.read_jobs(tmp_path / "in.jsonl", SamplingParams(), program.say)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path / 'in.jsonl'}: {key!r} is no setting and changes nothing; did you mean {near}?"
        for key, near in (("max_tokens", "max_new_tokens"), ("temprature", "temperature"))
    ]


@pytest.mark.parametrize("options", [("--quantize=int8",), ("--dtype=bfloat16",)])
def test_converted_weights(run, tmp_path, options):
    args = (f"--out_dir={run}", "--num_samples=2", "--max_new_tokens=40", "--on_full=refill")
    assert [len(text) for text in texts(*args, "--start=ab", *options, cwd=tmp_path)] == [42, 42]


# ---- the prompt loop ----


def test_the_prompt_loop_reads_lines(run, tmp_path):
    args = (f"--out_dir={run}", "--interactive", "--max_new_tokens=10")
    done = sample(*args, cwd=tmp_path, stdin="abc\nxyz\n\n")
    assert "character 'x'" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stdout) == 2 * 11 + 1  # two continuations, and a newline at the end
    assert set(done.stdout) <= set(CHARS.chars)


def test_a_line_that_is_not_utf8(program, monkeypatch, capsys):
    """One line says so, and the next one is read. A terminal's stdin is strict."""
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nab\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", lines)
    asked = []

    def continuations(prompt, params, turn):
        asked.append(prompt)
        return []

    program.typed_lines(
        lambda line, turn: program.go_on(
            ByteTokenizer(), line, SamplingParams(5), turn, continuations
        )
    )
    assert asked == [list(b"ab")]
    assert "error: the line is not UTF-8 from '\\udce9' on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "encoding, plain",
    [("utf-8", True), ("UTF8", True), ("cp1252", False), ("ascii", False), ("latin-1", False)],
)
def test_json_lines_for_another_encoding_are_json(program, encoding, plain):
    """Of an escape such as \\xe9, which a console gets for what it lacks, JSON knows nothing."""
    assert program.is_utf8(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) == plain
    assert program.is_utf8(io.StringIO())  # takes any character


def test_ctrl_c_ends_a_text_and_ctrl_d_the_loop(run, tmp_path):
    args = (f"--out_dir={run}", "--interactive", "--max_new_tokens=10000000", "--on_full=refill")
    with terminal(*args, cwd=tmp_path, stdin=True) as (process, ours):
        read_until(ours, "> ")
        os.write(ours, b"abc\n")
        read_until(ours, "abc\r\n")
        read_until(ours, "e")  # it is writing
        process.send_signal(signal.SIGINT)
        read_until(ours, "> ")
        os.write(ours, b"\x04")
        read_until(ours, "")
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read().decode()


def test_ctrl_c_at_the_prompt_leaves(run, tmp_path):
    with terminal(f"--out_dir={run}", "--interactive", cwd=tmp_path, stdin=True) as (process, ours):
        read_until(ours, "> ")
        time.sleep(0.3)  # readline waits for keys a moment after it has written that
        process.send_signal(signal.SIGINT)
        read_until(ours, "")
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read().decode()


# ---- mistakes ----


@pytest.mark.parametrize(
    "args, says",
    [
        (["--out_dir=nowhere"], "no checkpoint in nowhere"),
        (["--init_from=nothing"], "checkpoint or folder nothing"),
        (["--out_dir=one.jsonl"], "one.jsonl is damaged (or it is no checkpoint)"),
        (["--prompts=empty.jsonl"], "empty.jsonl holds no prompts: each line is an object"),
        (["--out=answers.jsonl"], "--out is a file for the answers to --prompts"),
        (["--start=FILE:gone.txt"], "cannot read the start from gone.txt"),
        (["--start=FILE:latin1.txt"], "the start from latin1.txt: byte 0, in line 1, is not UTF-8"),
        (["--start=aXb"], "'X'"),
        (["--start=caf\udce9"], "the start is not UTF-8 from '\\udce9' on"),
        (["--prompts=one.jsonl", "--interactive"], "without effect with --prompts"),
        (["--prompts=one.jsonl", "--chat"], "without effect with --prompts"),
        (["--system=be brief"], "--system is without effect without --chat"),
        (["--chat"], "the model has no chat template: name one (--template=plain"),
        (["--chat", "--template=plain"], "<|endoftext|>, which is no special token"),
        (["--template=plain"], "--template is without effect without --chat or --prompts"),
        (["--prompts=talk.jsonl"], "the model has no chat template: name one"),
        (["--temperature=-1"], "temperature=-1"),
        (["--num_samples=0"], "num_samples=0"),
        (["--on_full=slied"], "slide, refill, stop"),
        (["--prompts=gone.jsonl"], "cannot read the prompts from gone.jsonl"),
        (["--prompts=latin1.jsonl"], "latin1.jsonl: byte 13, in line 1, is not UTF-8"),
        (["--prompts=half.jsonl"], "half.jsonl, line 2: '\\udc41' is half of a character"),
        (["--prompts=one.jsonl", "--out=one.jsonl/a.jsonl"], "cannot write the answers to"),
        (["--quantize=int3"], "quantize=int3"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, args, says):
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "latin1.jsonl").write_bytes('{"prompt": "aé"}'.encode("latin-1"))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "one.jsonl").write_text('{"prompt": "a"}')
    talk = {"messages": [{"role": "user", "content": "a"}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk))
    (tmp_path / "half.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\udc41"}\n')
    done = sample(f"--out_dir={run}", *args, cwd=tmp_path, status=1)
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert sum(line.startswith("error") for line in lines) == 1 and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_is_on_stdout(tmp_path):
    """For `| less`; what stdout is else for, the samples, have it to themselves."""
    done = sample("--help", cwd=tmp_path)
    assert "usage: python" in done.stdout and not done.stderr
