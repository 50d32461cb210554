"""bonsai/models/gguf.py: read back by the library of the format, and by transformers.

Not by llama.cpp itself, which has to be built: LLAMA_CPP names the folder of one that is.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.gpt2_folder import transformers
from helpers.hostile_texts import HOSTILE
from helpers.tiny_model import texts, tiny

from bonsai import tokenizers
from bonsai.models import gguf as ours
from bonsai.models.gguf import tensors, vocabulary, write_gguf
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, CharTokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.patterns import GPT2

BPE = BPETokenizer.train(["the cat sat on the mat, that's that. naïve ☃!\n", *HOSTILE], 320)
LLAMA = dict(norm="rmsnorm", activation="swiglu", position="rope", bias=False)
SHAPES = {
    "gpt2": dict(activation="gelu_tanh"),
    "gpt2, scaled": dict(activation="gelu_tanh", bias=False, attention_scale=1.0),
    "gpt2, untied": dict(activation="gelu_tanh", tie_head=False, n_head=3, n_embd=33, n_layer=1),
    "llama": LLAMA,
    "llama, grouped": LLAMA | dict(tie_head=False, n_kv_head=2, rope_base=500.0),
    "llama, scaled": LLAMA | dict(n_kv_head=1, attention_scale=0.4, norm_gain=False),
}


def write(path: Path, tokenizer=BPE, dtype: str = "float32", chat=None, **fields):
    """The model that was written."""
    model = tiny(vocab_size=tokenizer.vocab_size, **fields)
    write_gguf(path, model.config, model.state_dict(), tokenizer, chat, dtype, "it")
    return model


def read(path: Path):
    library = pytest.importorskip("gguf", reason="gguf is not installed")
    reader = library.GGUFReader(path)
    found = {}
    for t in reader.tensors:
        array = library.quants.dequantize(t.data, t.tensor_type).reshape([*t.shape[::-1]])
        found[t.name] = (t.tensor_type.name, torch.from_numpy(array.copy()))
    return {name: field.contents() for name, field in reader.fields.items()}, found


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_it_and_computes_the_same(tmp_path, shape):
    for name in ("gguf", "accelerate"):  # which its reader of GGUF wants
        pytest.importorskip(name, reason=f"{name} is not installed")
    fields = SHAPES[shape]
    if shape.startswith("gpt2"):  # whose context it does not read
        fields = fields | dict(block_size=1024)
    model = write(tmp_path / "a.gguf", **fields)
    make = transformers.AutoModelForCausalLM
    theirs = make.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    ids = torch.randint(BPE.vocab_size, (2, 16))
    with torch.no_grad():
        want, given = model(ids, ids)[0], theirs.eval()(ids).logits
    assert want.std() > 0.1
    torch.testing.assert_close(given, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ours.TYPES)
def test_the_tensors_are_read_back(tmp_path, dtype):
    pytest.importorskip("gguf", reason="gguf is not installed")
    model = write(tmp_path / "a.gguf", dtype=dtype, **LLAMA, tie_head=False)
    _, wanted = tensors(model.config, model.state_dict(), "it")
    values, found = read(tmp_path / "a.gguf")
    assert found.keys() == wanted.keys() and len(found) == 3 + 2 * 9
    for name, (kind, w) in found.items():
        assert kind == (ours.TYPES[dtype] if w.dim() > 1 else "F32"), name
        assert w.shape == wanted[name].shape
        close = {"float32": 0, "float16": 1e-3, "bfloat16": 8e-3, "q8_0": 8e-3}[dtype]
        assert (w - wanted[name]).abs().max() <= close * wanted[name].abs().max(), name
    assert values["general.architecture"] == "llama" and values["llama.block_count"] == 2
    assert values["llama.attention.head_count_kv"] == 4 and values["llama.context_length"] == 16


def test_rows_that_are_no_whole_blocks_stay_in_half_precision(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    write(tmp_path / "a.gguf", dtype="q8_0", n_embd=24, activation="gelu_tanh")
    _, found = read(tmp_path / "a.gguf")
    kinds = {name: kind for name, (kind, _) in found.items()}
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0" and kinds["position_embd.weight"] == "F32"


def test_the_tokenizer_is_that_of_the_model(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    chat = ChatTemplate.from_dict({"roles": {"user": ["Q", "\n"], "assistant": ["A", "\n"]}})
    write(tmp_path / "a.gguf", chat=chat, **LLAMA)
    values, _ = read(tmp_path / "a.gguf")
    assert values["tokenizer.ggml.pre"] == "llama-bpe"
    assert values["tokenizer.ggml.eos_token_id"] == values["tokenizer.ggml.bos_token_id"] == BPE.eot
    assert values["tokenizer.ggml.tokens"][BPE.eot] == EOT_TEXT
    assert values["tokenizer.ggml.token_type"][BPE.eot - 1 :] == [ours.NORMAL, ours.CONTROL]
    assert len(values["tokenizer.ggml.merges"]) == 320 - 257
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert "message['content']" in values["tokenizer.chat_template"]


def test_vocabularies():
    pre, tokens, kinds, merges = vocabulary(tokenizers.get("byte"), 257)
    assert pre == "gpt-2" and not merges and tokens[ord("a")] == "a" and kinds[256] == ours.CONTROL
    holes = BPETokenizer([*tokenizers.bpe.BYTES, b"ab", None], GPT2, {EOT_TEXT: 260})
    pre, tokens, kinds, merges = vocabulary(holes, 261)
    assert (pre, merges) == ("gpt-2", ["a b"]) and tokens[257] == "[UNUSED257]"
    assert kinds[256:] == [ours.NORMAL, *[ours.UNUSED] * 3, ours.CONTROL]


@pytest.mark.parametrize("tokenizer, hint", [
    (CharTokenizer("ab"), "a char tokenizer has no place"),
    (BPETokenizer.train(HOSTILE, 300, special_tokens=()), "id 11 for the end of a text"),
    (BPETokenizer.train(HOSTILE[:8], 300, None), "cuts no text"),
    (BPETokenizer([*tokenizers.bpe.BYTES, b"bc", b"ab", b"xyz"], GPT2, {EOT_TEXT: 259}), "xyz"),
])  # fmt: skip
def test_a_tokenizer_that_is_read_otherwise_there_is_refused(tmp_path, tokenizer, hint):
    with pytest.raises(UserError, match=hint) as e:
        write(tmp_path / "a.gguf", tokenizer)
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


FAST = dict(norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope", bias=False)


@pytest.mark.parametrize("fields, hint", [
    (dict(activation="relu"), "activation=relu"),
    (LLAMA | dict(bias=True), "bias=True"),
    (FAST | dict(qk_norm=True, activation="relu2"), "qk_norm=True"),
    (dict(attention_window=4), "attention_window=4"),
])  # fmt: skip
def test_a_field_that_has_no_place_is_named(tmp_path, fields, hint):
    with pytest.raises(UserError, match=hint):
        write(tmp_path / "a.gguf", **fields)
    assert not list(tmp_path.iterdir())


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        write(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="gguf is not installed")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"the disk is full while writing .*a\.gguf"):
        write(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="LLAMA_CPP names no built llama.cpp")
@pytest.mark.parametrize("shape", ["gpt2", "llama, grouped"])
def test_llama_cpp_writes_the_same_greedy_text(tmp_path, shape):
    pytest.importorskip("gguf", reason="gguf is not installed")
    model = write(tmp_path / "a.gguf", block_size=128, **SHAPES[shape])
    folder = Path(os.environ["LLAMA_CPP"])
    tokenize = [folder / "llama-tokenize", "-m", tmp_path / "a.gguf", "--ids", "--log-disable"]
    for text in filter(None, HOSTILE):
        if "\0" not in text:
            done = subprocess.run([*tokenize, "-p", text], capture_output=True, text=True)
            ids = np.fromstring(done.stdout.strip().strip("[]"), sep=",", dtype=int).tolist()
            assert ids == BPE.encode(text, allow_special=True), text
    prompt = BPE.encode("the cat")
    (row,) = texts(model, prompt, max_new_tokens=100, temperature=0)
    command = [folder / "llama-completion", "-m", tmp_path / "a.gguf", "-p", "the cat", "-n", "100"]
    command += ["--temp", "0", "-no-cnv", "--no-warmup", "--ignore-eos"]
    done = subprocess.run([*map(str, command)], capture_output=True)
    assert done.stdout.decode("utf-8", "replace").strip() == BPE.decode([*prompt, *row]).strip()
