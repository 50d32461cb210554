"""nanoGPT's data whose meta.pkl has other tokens than characters, through all programs."""

import os
import pickle
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluated import runtime
from helpers.programs import TINY, assert_one_line_error, load, output_of, run_command, run_program
from helpers.tiny_data import tiny_text

from bonsai.models.loading import load_model
from bonsai.serving.registry import load_served
from bonsai.system.errors import UserError

NANOGPT = os.environ.get("NANOGPT")


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|\W", text)


def characters_of(text: str) -> list[str]:
    """With a token for each end of a line."""
    return [{"\n": "<END>"}.get(c, c) for c in text]


FORMS = {  # data set -> how it cuts a text into tokens, and the form of itos
    "words": (words_of, dict),
    "end": (characters_of, dict),
    "list": (list, lambda itos: list(itos.values())),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """data/NAME for each of FORMS, data/numbers, of which no text is made, and a run of each."""
    place = tmp_path_factory.mktemp("tables")
    for name, (cut, form) in FORMS.items():
        tokens = sorted({*cut(tiny_text(1500))})
        stoi = {token: i for i, token in enumerate(tokens)}
        meta = {"vocab_size": len(tokens), "stoi": stoi, "itos": form(dict(enumerate(tokens)))}
        splits = {split: cut(tiny_text(1500, seed)) for seed, split in enumerate(SPLITS)}
        write(place / "data" / name, splits, meta)
    write(place / "data" / "numbers", {s: list("abc" * 99) for s in SPLITS}, NUMBERS)
    for name in (*FORMS, "numbers"):
        options = [*TINY, "--max_iters=2", f"--dataset={name}", f"--out_dir=out-{name}"]
        done = run_program(options, place)
        assert done.rc == 0, done
        (place / f"out-{name}" / "said.txt").write_text(done.stdout)
    return place


SPLITS = ("train", "val")
NUMBERS = {"vocab_size": 3, "merges": {"a": 1}}


def write(folder: Path, splits: dict[str, list[str]], meta: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    stoi = meta.get("stoi", {"a": 0, "b": 1, "c": 2})
    for name, tokens in splits.items():
        np.array([stoi[t] for t in tokens], "<u2").tofile(folder / f"{name}.bin")


def meta_of(place: Path, name: str) -> dict:
    return pickle.loads((place / "data" / name / "meta.pkl").read_bytes())


@pytest.fixture
def call(place, monkeypatch, capsys):
    """A program in this process; its output."""
    return partial(output_of, place, monkeypatch, capsys)


GREEDY = ("--temperature=0", "--num_samples=1", "--max_new_tokens=9", "--device=cpu")


def sampled(call, source: str, start: str) -> str:
    said = call("sample.py", f"--init_from={source}", f"--start={start}", *GREEDY)
    return re.sub(r"^settings: .*\n", "", said).removesuffix("\n---------------\n")


def written_by_nanogpt(place: Path, name: str, start: list[str]) -> str:
    """As nanoGPT's sample.py encodes and decodes, the likeliest token each time."""
    meta, model = meta_of(place, name), load_model(str(place / f"out-{name}")).model.eval()
    ids = torch.tensor([[meta["stoi"][c] for c in start]])
    with torch.no_grad():
        ids = model.generate(ids, 9, top_k=1)[0].tolist()
    return "".join(meta["itos"][i] for i in ids)


@pytest.mark.parametrize("name", FORMS)
def test_samples_are_those_of_nanogpt(place, call, name):
    start = ["a"] if name == "words" else ["t", "h", "e", " "]
    want = written_by_nanogpt(place, name, start)
    source = f"out-{name}/ckpt.pt"
    assert sampled(call, source, "".join(start)) == want and len(want) > 9
    # nanoGPT's checkpoints carry no tokenizer
    state = load(place / source)
    assert "makes no text" not in (place / f"out-{name}" / "said.txt").read_text()
    torch.save({k: v for k, v in state.items() if k != "tokenizer"}, place / "theirs.pt")
    assert sampled(call, "theirs.pt", "".join(start)) == want


def test_a_token_of_several_characters_is_one_in_a_prompt(place, call):
    for name, token in (("words", "stars"), ("end", "<END>")):
        want = written_by_nanogpt(place, name, [token])
        assert sampled(call, f"out-{name}/ckpt.pt", token) == want


@pytest.mark.parametrize("name", ["words", "end"])
def test_every_program_knows_the_table(place, call, name, tmp_path):
    tokens = [meta_of(place, name)["itos"][i] for i in range(meta_of(place, name)["vocab_size"])]
    state = {"type": "table", "tokens": tokens}
    assert load(place / f"out-{name}" / "ckpt.pt")["tokenizer"] == state
    assert "2 tokens" in call("show_tokens.py", f"--tokenizers=data/{name}", "--text=a ")
    assert "loss" in call("eval.py", f"--out_dir=out-{name}", f"--dataset={name}", "--device=cpu")
    served = load_served("it", str(place / f"out-{name}"), runtime(), max_batch=1)
    assert served.tokenizer.to_dict() == state and served.token_bytes(0) == tokens[0].encode()


def test_the_table_is_exported_or_refused_by_its_name(place, call, tmp_path):
    one, theirs = tmp_path / "m.safetensors", tmp_path / "nano"
    want = sampled(call, "out-words/ckpt.pt", "a")
    call("export.py", "--out_dir=out-words", "--to=safetensors", f"--out={one}")
    assert sampled(call, str(one), "a") == want
    said = call("export.py", "--out_dir=out-words", "--to=nanogpt", f"--out={theirs}")
    assert "ckpt.pt, meta.pkl" in said
    assert pickle.loads((theirs / "meta.pkl").read_bytes()) == meta_of(place, "words")
    for to, out in (("hf", "folder"), ("gguf", "m.gguf")):
        with pytest.raises(UserError, match="a table tokenizer has no place in"):
            call("export.py", "--out_dir=out-words", f"--to={to}", f"--out={tmp_path / out}")
        assert not (tmp_path / out).exists()


def test_data_without_a_table_are_named_when_training_starts(place, call):
    said = (place / "out-numbers" / "said.txt").read_text()
    note = "data/numbers/meta.pkl makes no text of ids: it has merges, vocab_size, but neither"
    assert said.index(note) < said.index("number of parameters")
    done = run_program(["--out_dir=out-numbers"], place, program="sample.py")
    assert done.rc == 1 and len(last := done.stderr.splitlines()[-1]) < 400
    assert last.startswith("error: out-numbers/ckpt.pt was trained on numbers") and note in last


def test_another_table_is_another_tokenizer(place):
    options = [*TINY, "--init_from=out-words/ckpt.pt", "--dataset=end", "--out_dir=out-other"]
    done = run_program([o for o in options if not o.startswith(("--n_", "--block"))], place)
    words, end = (meta_of(place, name)["vocab_size"] for name in ("words", "end"))
    assert_one_line_error(done, f"(table, {words} texts) than data set end (table, {end} texts)")


@pytest.mark.skipif(not NANOGPT, reason="set NANOGPT to a checkout of nanoGPT")
@pytest.mark.parametrize("name", FORMS)
def test_nanogpts_own_program_writes_the_same(place, call, name, tmp_path):
    for file in ("sample.py", "model.py", "configurator.py"):
        shutil.copy(Path(NANOGPT) / file, tmp_path)
    shutil.copytree(place / "data", tmp_path / "data")
    start = "a" if name == "words" else "the "
    options = [f"--out_dir={place / f'out-{name}'}", "--device=cpu", "--dtype=float32", "--top_k=1"]
    options += ["--num_samples=1", "--max_new_tokens=9", f"--start={start}"]
    done = run_command([sys.executable, "sample.py", *options], tmp_path)
    assert done.rc == 0, done
    theirs = done.stdout.partition("Loading meta from")[2].partition("\n")[2]
    assert theirs.removesuffix("\n---------------\n") == sampled(call, f"out-{name}/ckpt.pt", start)
