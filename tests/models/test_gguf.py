"""bonsai/models/gguf.py: read back by the library of the format, by transformers, by llama.cpp."""

import errno
import json
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers.gpt2_folder import transformers
from helpers.hostile_texts import HOSTILE, difficult_texts
from helpers.shared_data import need_vocabulary
from helpers.tiny_model import texts, tiny

from bonsai import tokenizers
from bonsai.engine.text import find_tokenizer
from bonsai.models import gguf as ours
from bonsai.models.gguf import (
    read_gguf,
    read_template,
    read_vocabulary,
    stops_of,
    tensors,
    vocabulary,
    write_gguf,
)
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate
from bonsai.tokenizers.patterns import DIGITS, GPT2

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


@pytest.mark.parametrize("dtype, most", [("float16", 65504), ("q8_0", 65504 * 127)])
def test_weights_that_are_too_large_are_named(tmp_path, dtype, most):
    pytest.importorskip("gguf", reason="gguf is not installed")
    model = tiny(vocab_size=BPE.vocab_size, activation="gelu_tanh")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = most * 1.01
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight has weights beyond 65504"):
        write_gguf(tmp_path / "a", model.config, model.state_dict(), BPE, None, dtype, "it")
    assert not list(tmp_path.iterdir())


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
    assert "tokenizer.ggml.eot_token_id" not in values  # an answer ends with text


def test_the_token_that_ends_an_answer(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    names = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    bpe = tokenizers.BPETokenizer.train(["to be or not to be " * 9], 270, special_tokens=names)
    write(tmp_path / "a.gguf", bpe, chat=TEMPLATES["tokens"])
    values, _ = read(tmp_path / "a.gguf")
    assert values["tokenizer.ggml.eot_token_id"] == bpe.special_tokens["<|end|>"]
    assert values["tokenizer.ggml.eos_token_id"] == bpe.eot


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_comes_back(tmp_path, name):
    pytest.importorskip("gguf", reason="gguf is not installed")
    special = (EOT_TEXT, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    special += ("<|im_start|>", "<|im_end|>")
    bpe = BPETokenizer.train(["to be 12 " * 9], 280, DIGITS, special)
    template = ChatTemplate.from_dict({**TEMPLATES[name].to_dict(), "system": "Be 'kind'."})
    write(tmp_path / "a.gguf", bpe, chat=template)
    loaded = load_model(str(tmp_path / "a.gguf"))
    assert loaded.chat == template and loaded.tokenizer == bpe.to_dict() and not loaded.chat_note
    end = template.end_token(bpe)
    assert loaded.answer_ends(bpe) == ((bpe.eot,) if end == bpe.eot else (bpe.eot, end))


@pytest.mark.parametrize(("values", "found", "stops"), [
    ({}, None, ()),
    ({"chat_template": 5}, None, ()),
    ({"ggml.eos_token_id": 1, "ggml.eot_token_id": 2, "ggml.eom_token_id": 9}, None, (1, 2)),
    ({"ggml.eos_token_id": 1, "chat_template": "eos_token"}, "b", (1,)),
    ({"ggml.eos_token_id": -1, "chat_template": "'\\n'"}, "\n", ()),
    ({"ggml.eos_token_id": "b", "chat_template": "'\\n'"}, "\n", ()),
])  # fmt: skip
def test_what_a_file_says_of_chats(values, found, stops):
    """In other words than ours; ids that are no tokens are left out."""
    said = "{% for message in messages %}{{ message.role + message.content + END }}{% endfor %}"
    said += "{% if add_generation_prompt %}assistant{% endif %}"
    values = {f"tokenizer.{name}": value for name, value in values.items()}
    if isinstance(end := values.get("tokenizer.chat_template"), str):
        values["tokenizer.chat_template"] = said.replace("END", end)
    values["tokenizer.ggml.tokens"] = ["a", "b", "c"]
    template = read_template(values)
    assert (template and template.roles["user"]) == (found and ("user", found))
    assert stops_of(values, 3) == stops
    with pytest.raises(UserError, match=r"\{\{ tools \}\}"):
        read_template({**values, "tokenizer.chat_template": "{{ tools }}"})


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


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    """Where NumPy writes, which says how many numbers, and not why."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    resource = pytest.importorskip("resource", reason="limits the size of files by POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"the disk is full while writing .*a\.gguf"):
            write(tmp_path / "a.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"^a\.gguf has no tokenizer$"):
        read_vocabulary({"general.architecture": "llama"}, 9, "a.gguf")


# ---- llama.cpp itself, as xllamacpp carries it ----


class LlamaCpp:
    """Its server with one file."""

    def __init__(self, path: Path, context: int):
        x = pytest.importorskip("xllamacpp", reason="xllamacpp, a build of llama.cpp, is missing")
        p = x.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.warmup = str(path), context, 1, False
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
        p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.verbosity = -1
        self.server = x.Server(p)

    def post(self, route: str, **body) -> dict:
        url, head = self.server.listening_address + route, {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        return json.load(urllib.request.urlopen(request, timeout=120))


EXACT = dict(bias=False, tie_head=False, attention_scale=1.0)  # and the other GELU
CASES = {
    "gpt2": (lambda: BPE, dict(activation="gelu_tanh"), "float32"),
    "gpt2, gelu": (lambda: BPETokenizer.train(HOSTILE, 320, GPT2), EXACT, "float32"),
    "digits": (lambda: BPETokenizer.train(HOSTILE, 320, DIGITS), LLAMA, "float32"),
    "gpt2, bytes": (lambda: tokenizers.get("byte"), dict(activation="gelu_tanh"), "float32"),
    "llama": (lambda: BPE, LLAMA | dict(attention_scale=0.1, n_kv_head=1), "float32"),
    "llama, grouped": (lambda: BPE, SHAPES["llama, grouped"], "float32"),
    "wide heads": (lambda: BPE, LLAMA | dict(head_size=32, n_kv_head=2), "float32"),
    "vocabulary of gpt2": (lambda: tokenizers.get("gpt2"), dict(activation="gelu_tanh"), "q8_0"),
    "vocabulary of gpt4": (lambda: tokenizers.get("gpt4"), LLAMA, "bfloat16"),
    "half precision": (lambda: BPE, LLAMA, "float16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_has_the_same_ids_and_writes_the_same_greedy_text(tmp_path, case):
    pytest.importorskip("gguf", reason="gguf is not installed")
    if case.startswith("vocabulary of"):
        need_vocabulary(case[-4:])
    make, fields, dtype = CASES[case]
    tokenizer = make()
    fields = dict(block_size=256, n_embd=64) | fields
    model = write(tmp_path / "a.gguf", tokenizer, dtype, **fields)
    llama = LlamaCpp(tmp_path / "a.gguf", 256)
    for text in [*HOSTILE, *map(tokenizers.well_formed, difficult_texts()[:50])]:
        for special in (True, False):
            options = dict(content=text, add_special=False, parse_special=special)
            ids = tokenizer.encode(text, allow_special=special)
            assert llama.post("/tokenize", **options)["tokens"] == ids, text
    prompt = tokenizer.encode("the cat sat")
    options = dict(n_predict=100, temperature=0, return_tokens=True, cache_prompt=False)
    given = llama.post("/completion", prompt=prompt, **options)["tokens"]
    if dtype != "float32":
        assert given
        return
    (row,) = texts(model, prompt, max_new_tokens=100, temperature=0)
    row = row[: row.index(tokenizer.eot)] if tokenizer.eot in row else row
    assert given[: len(row)] == row and len(row) > 5


# ---- in ----


@pytest.mark.parametrize("shape", [*SHAPES, "narrow heads"])
def test_what_was_written_comes_back_bit_for_bit(tmp_path, shape):
    pytest.importorskip("gguf", reason="gguf is not installed")
    fields = SHAPES.get(shape, LLAMA | dict(head_size=4, n_kv_head=2))
    model = write(tmp_path / "a.gguf", **fields)
    loaded = load_model(str(tmp_path / "a.gguf"))
    folded = "attention_scale" in fields
    for key, w in model.state_dict().items():
        ours = loaded.model.state_dict()[key]
        assert torch.equal(ours, w) or (folded and ".c_attn." in key), key
    ids = torch.randint(BPE.vocab_size, (2, 16))
    with torch.no_grad():
        want, given = model(ids, ids)[0], loaded.model.eval()(ids, ids)[0]
    torch.testing.assert_close(given, want, atol=1e-5, rtol=1e-5)
    assert find_tokenizer(loaded)[0].to_dict() == BPE.to_dict()


@pytest.mark.parametrize("name", ["byte", "gpt2", "gpt4"])
def test_a_tokenizer_that_needs_but_its_name_comes_back(name):
    if name != "byte":
        need_vocabulary(name)
    tokenizer = tokenizers.get(name)
    pre, tokens, kinds, merges = vocabulary(tokenizer, tokenizer.vocab_size)
    values = dict(model="gpt2", pre=pre, tokens=tokens, token_type=kinds)
    values |= dict(merges=merges or [f"{EOT_TEXT} {EOT_TEXT}"], eos_token_id=tokenizer.eot)
    values |= dict(add_bos_token=False)
    values = {f"tokenizer.ggml.{k}": v for k, v in values.items()}
    assert read_vocabulary(values, tokenizer.vocab_size, "it") == {"type": name}


GOOD = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a"], "token_type": [1], "merges": []}


@pytest.mark.parametrize("changes", [
    dict(model="llama"), dict(pre="qwen2"), dict(pre=[1]), dict(tokens=None), dict(tokens=[1]),
    dict(token_type=[]), dict(token_type=3), dict(merges=3), dict(merges=["a"]), dict(merges=[2]),
    {}, dict(eos_token_id="a"), dict(eos_token_id=-1), dict(merges=None), dict(pre="llama-bpe"),
    dict(add_bos_token=True),
], ids=str)  # fmt: skip
def test_a_vocabulary_that_is_none_is_refused(changes):
    values = {f"tokenizer.ggml.{k}": v for k, v in {**GOOD, **changes}.items()}
    with pytest.raises(UserError, match=r"it: |256 bytes"):
        read_vocabulary(values, 100, "it")


def by_hand(monkeypatch, config: dict, weights: dict) -> None:
    values = {"general.architecture": "llama"} | {f"llama.{k}": v for k, v in config.items()}
    monkeypatch.setattr(ours, "read_gguf_file", lambda path: (values, weights))


CONFIG = {
    **{"context_length": 16, "embedding_length": 8, "feed_forward_length": 32, "block_count": 1},
    **{"attention.head_count": 2, "attention.layer_norm_rms_epsilon": 9.999999747378752e-06},
}


@pytest.mark.parametrize("changes, hint", [
    ({"attention.head_count": 0}, "num_attention_heads=0"),
    ({"attention.head_count": 3}, "not 3 heads"),
    ({"attention.head_count": [2]}, "num_attention_heads"),
    ({"attention.layer_norm_rms_epsilon": 1.5}, "rms_norm_eps"),
    ({"attention.layer_norm_rms_epsilon": None}, r"it has no llama\.attention.layer_norm_rms"),
    ({"rope.scaling.type": "linear"}, "rope.scaling.type"),
    ({"expert_count": 8}, "expert_count"),
    ({"rope.scaling.factor": 4.0}, "rope.scaling.factor"),
    ({"rope.scale_linear": 4.0}, "rope.scale_linear"),
    ({"rope.dimension_count": 2}, "rope.dimension_count of its values is not its head size, 4"),
    ({"attention.value_length": 2}, "attention.value_length"),
    ({"attention.scale": 0.5}, "attention.scale"),
    ({"attention.sliding_window": 4}, "attention.sliding_window"),
    ({"attention.causal": False}, "attention.causal"),
    ({"logit_scale": 2.0}, "logit_scale"),
    ({"block_count": 2}, "no transformer.h.1"),
    ({"block_count": 2**40}, "num_hidden_layers"),
    ({"embedding_length": 2**30, "feed_forward_length": 2**32}, "hidden_size|intermediate|fit"),
    ({"context_length": None}, "max_position_embeddings"),
])  # fmt: skip
def test_values_that_do_not_fit_are_one_line(monkeypatch, changes, hint):
    model = tiny(vocab_size=9, n_layer=1, n_head=2, n_embd=8, **LLAMA)
    _, weights = tensors(model.config, model.state_dict(), "it")
    by_hand(monkeypatch, CONFIG, weights)
    settings, _, _ = read_gguf(Path("it"))
    assert settings["n_embd"] == 8 and settings["tie_head"]
    same = {"rope.scaling.factor": 1.0, "rope.dimension_count": 4, "attention.causal": True}
    by_hand(monkeypatch, CONFIG | same | {"expert_count": 0, "logit_scale": 0.0}, weights)
    assert read_gguf(Path("it"))[0] == settings
    by_hand(monkeypatch, CONFIG | changes, weights)
    with pytest.raises(UserError, match=hint) as e:
        read_gguf(Path("it"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("shape", [(), (0,), (0, 8), (8, 0), (0, 0), (2, 2, 2)])
def test_a_tensor_of_another_shape_is_named(monkeypatch, shape):
    model = tiny(vocab_size=9, n_layer=1, n_head=2, n_embd=8, **LLAMA)
    _, weights = tensors(model.config, model.state_dict(), "it")
    for name in weights:
        by_hand(monkeypatch, CONFIG, weights | {name: torch.zeros(shape)})
        with pytest.raises(UserError) as e:
            read_gguf(Path("it"))
        assert "\n" not in str(e.value), name


def test_another_epsilon_is_in_the_weights(monkeypatch):
    model = tiny(vocab_size=9, n_layer=1, n_head=2, n_embd=8, **LLAMA)
    _, weights = tensors(model.config, model.state_dict(), "it")
    by_hand(monkeypatch, CONFIG | {"attention.layer_norm_rms_epsilon": 1e-6}, weights)
    read, wanted = read_gguf(Path("it"))[1], model.state_dict()
    for name, factor in (("wte", 10**0.5), ("h.0.mlp.c_proj", 10**0.5), ("ln_f", 10**-0.5)):
        name = f"transformer.{name}.weight"
        torch.testing.assert_close(read[name], factor * wanted[name])


def test_a_tensor_too_much_and_another_architecture(monkeypatch):
    model = tiny(vocab_size=9, n_layer=1, n_head=2, n_embd=8, **LLAMA)
    _, weights = tensors(model.config, model.state_dict(), "it")
    for name in ("rope_freqs.weight", "blk.0.attn_q_norm.weight", "blk.x.attn_q.weight", "weight"):
        by_hand(monkeypatch, CONFIG, weights | {name: torch.zeros(2)})
        with pytest.raises(UserError, match="has no place in it"):
            read_gguf(Path("it"))
    by_hand(monkeypatch, CONFIG, weights | {"blk.0.attn_q.bias": torch.zeros(8)})
    with pytest.raises(UserError, match=r"is not 2 heads|too much"):
        read_gguf(Path("it"))
    monkeypatch.setattr(ours, "read_gguf_file", lambda path: ({"general.architecture": "bert"}, {}))
    with pytest.raises(UserError, match="'bert' model, not a gpt2 or llama"):
        read_gguf(Path("it"))
