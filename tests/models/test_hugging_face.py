"""bonsai/models/hugging_face.py and the tokenizers of its folders: other people's GPT-2, against
transformers. What a folder says is honoured or refused, and nothing in it is executed."""

import json
import shutil
import struct
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.programs import run_program
from helpers.shared_data import need_vocabulary

from bonsai import tokenizers
from bonsai.engine.text import find_tokenizer
from bonsai.files.safetensors import read_safetensors
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SIZES = dict(vocab_size=61, n_positions=24, n_embd=32, n_layer=3, n_head=4, bos_token_id=60)
SIZES |= dict(eos_token_id=60)


def save(folder: Path, seed: int = 0, safe: bool = True, **fields) -> Path:
    """A GPT2LMHeadModel of its own shape with weights that are not nearly zero."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **fields})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    model.save_pretrained(folder)
    if not safe:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, ids)[0]


def assert_equal(folder: Path) -> None:
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    ours = load_model(str(folder), "").model.eval()
    ids = torch.randint(SIZES["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs.eval()(ids).logits
    assert want.std() > 0.5
    torch.testing.assert_close(logits(ours, ids), want, atol=2e-4, rtol=1e-4)


# ---- config.json: every field of GPT2Config ----

# True: the logits are those of transformers; else what the refusal names. A pair is a field's value
# and which; several for a field whose values differ in that.
TABLE = {
    "vocab_size": [(64, True)],
    "n_positions": [(30, True)],
    "n_embd": [(48, True)],
    "n_layer": [(1, True)],
    "n_head": [(2, True), (1, True)],
    "n_inner": [(None, True), (128, True), (64, "n_inner")],
    "activation_function": [
        *((name, True) for name in ("gelu", "gelu_new", "gelu_fast", "gelu_python", "relu")),
        *((name, True) for name in ("gelu_pytorch_tanh", "gelu_accurate", "relu2")),
        *((name, "activation_function") for name in ("silu", "quick_gelu", "gelu_10", "tanh")),
    ],
    "resid_pdrop": [(0.5, True)],  # of training alone
    "embd_pdrop": [(0.5, True)],
    "attn_pdrop": [(0.5, True)],
    "layer_norm_epsilon": [(1e-5, True), (1e-3, "layer_norm_epsilon")],
    "initializer_range": [(0.5, True)],
    "summary_type": [("mean", True)],
    "summary_use_proj": [(False, True)],
    "summary_activation": [("tanh", True)],
    "summary_proj_to_labels": [(False, True)],
    "summary_first_dropout": [(0.5, True)],
    "scale_attn_weights": [(False, True)],
    "use_cache": [(False, True)],
    "bos_token_id": [(None, True)],
    "eos_token_id": [(None, True)],
    "pad_token_id": [(3, True)],
    "scale_attn_by_inverse_layer_idx": [(True, True)],
    "reorder_and_upcast_attn": [(True, True)],
    "add_cross_attention": [(True, "add_cross_attention")],
    "tie_word_embeddings": [(False, True)],
}
CASES = [(field, *case) for field, cases in TABLE.items() for case in cases]


def test_the_table_has_every_field():
    inherited = {f.name for f in fields(transformers.PretrainedConfig)}
    own = set(transformers.GPT2Config.__annotations__) or set(transformers.GPT2Config().to_dict())
    assert own - inherited - {"model_type"} <= set(TABLE)


@pytest.mark.parametrize("field, value, expected", CASES, ids=lambda v: str(v)[:30])
def test_a_field_of_the_config_is_honoured_or_refused(tmp_path, field, value, expected):
    folder = save(tmp_path / "hf", **{field: value})
    if expected is True:
        assert_equal(folder)
    else:
        with pytest.raises(UserError, match=f"{field}.*not supported"):
            load_model(str(folder), "")


@pytest.mark.parametrize("scale, inner", [(False, 128), (True, None)])
def test_fields_together(tmp_path, scale, inner):
    fields = dict(scale_attn_weights=scale, n_inner=inner, scale_attn_by_inverse_layer_idx=True)
    assert_equal(save(tmp_path / "hf", tie_word_embeddings=False, **fields))


@pytest.mark.parametrize("changes, hint", [
    (dict(pruned_heads={"0": [1]}), "pruned_heads"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(n_layer=2), "too much"),
    (dict(n_layer=4), "does not fit"),
    (dict(n_layer=10**12), "n_layer"),
    (dict(n_embd=2**31), "does not fit"),
    (dict(vocab_size=60), "does not fit"),
    (dict(n_head="4"), "n_head"),
    (dict(n_head=5), "n_head"),
    (dict(n_positions=-1), "n_positions"),
    (dict(n_positions=None), "n_positions"),
    (dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon"),
    (dict(activation_function=["gelu"]), "activation_function"),
    (dict(activation_function="swiglu"), "activation_function"),
    (dict(tie_word_embeddings="no"), "tie_word_embeddings"),
    (dict(model_type="gpt_neo"), "gpt_neo"),
    (dict(model_type=None), "not a gpt2"),
    (dict(model_type=[1]), "not a gpt2"),
    (dict(auto_map={"AutoModelForCausalLM": "evil.Evil"}), "auto_map"),
], ids=str)  # fmt: skip
def test_a_config_that_is_not_this_models_is_refused(tmp_path, changes, hint):
    folder = save(tmp_path / "hf")
    change(folder, **changes)
    with pytest.raises(UserError, match=hint) as e:
        load_model(str(folder), "")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": ' * 5000, "\xff\xfe\x00"])
def test_a_damaged_config_is_refused(tmp_path, content):
    folder = save(tmp_path / "hf")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(str(folder), "")


# ---- weights ----


def test_forms_of_the_weights(tmp_path):
    """One file or several, safetensors or pickle, names with and without their prefix."""
    assert_equal(save(tmp_path / "bin", safe=False))
    shards = tmp_path / "shards"
    model = transformers.GPT2LMHeadModel.from_pretrained(save(tmp_path / "hf"))
    model.save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert_equal(shards)
    transformers.GPT2Model.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "base")
    assert "wte.weight" in read_safetensors(tmp_path / "base" / "model.safetensors")
    assert_equal(tmp_path / "base")
    half = model.to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    ours = load_model(str(tmp_path / "half"), "").model
    assert ours.lm_head.weight.dtype == torch.float32
    # a head that differs although the config ties it stays one of its own
    untied = save(tmp_path / "untied", tie_word_embeddings=False)
    change(untied, tie_word_embeddings=True)
    assert_equal(untied)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "missing.bin"])
def test_an_index_names_files_of_its_folder(tmp_path, name):
    folder = save(tmp_path / "hf", safe=False)
    (folder / "pytorch_model.bin").rename(tmp_path / "outside.bin")
    index = {"weight_map": {"transformer.wte.weight": name}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"not in|No such file"):
        load_model(str(folder), "")


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"1234567",
    "header beyond the file": safetensors({}, length=2**62),
    "header of 2 GB": safetensors({}, length=2**31),
    "no JSON": safetensors(b"{"),
    "no object": safetensors([1]),
    "deep": safetensors(b'{"a":' * 5000),
    "bytes missing": safetensors({"w": entry()}, b"1234"),
    "bytes too many": safetensors({"w": entry()}, bytes(12)),
    "overlap": safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "hole": safetensors({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20)),
    "shape too large": safetensors({"w": entry(shape=[10**12])}, bytes(8)),
    "product too large": safetensors({"w": entry(shape=[2**40, 2**40, 0, 1])}, bytes(8)),
    "negative": safetensors({"w": entry(shape=[-2])}, bytes(8)),
    "turned round": safetensors({"w": entry(begin=8, end=0)}, bytes(8)),
    "shape of words": safetensors({"w": entry(shape=["2"])}, bytes(8)),
    "shape of true": safetensors({"w": entry(shape=[True, 2])}, bytes(8)),
    "dtype": safetensors({"w": entry(dtype="F4")}, bytes(8)),
    "dtype a list": safetensors({"w": entry(dtype=["F32"])}, bytes(8)),
    "no entry": safetensors({"w": 3}, bytes(8)),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_a_safetensors_file_that_does_not_add_up(tmp_path, kind):
    (tmp_path / "w.safetensors").write_bytes(BAD_SAFETENSORS[kind])
    with pytest.raises(UserError) as e:
        read_safetensors(tmp_path / "w.safetensors")
    assert "w.safetensors" in str(e.value) and "\n" not in str(e.value)


def test_a_good_safetensors_file(tmp_path):
    content = safetensors(
        {"__metadata__": {"format": "pt"}, "w": entry()}, struct.pack("<2f", 1, 2)
    )
    (tmp_path / "w.safetensors").write_bytes(content)
    assert read_safetensors(tmp_path / "w.safetensors")["w"].tolist() == [1, 2]


# ---- whose folder it is ----


def test_a_folder_of_their_trainer(tmp_path):
    """It holds an optimizer.pt, and the folder above it only folders of this kind."""
    folder = save(tmp_path / "out" / "checkpoint-500")
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
    torch.save({}, folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text("{}")
    assert_equal(folder)
    with pytest.raises(UserError, match="checkpoint-500"):
        load_model(str(tmp_path / "out"), "")


@pytest.mark.parametrize("program", ["sample.py", "train.py"])
def test_code_of_a_folder_is_never_executed(workplace, tmp_path, program):
    """Nor asked for, though somebody says yes to every question."""
    folder, marker = save(tmp_path / "hf"), tmp_path / "executed"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('executed')\n")
    parts = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    change(folder, auto_map={part: f"evil.{part[4:]}" for part in parts})
    options = [f"--init_from={folder}", "--device=cpu"]
    options += ["--dataset=meta", f"--out_dir={tmp_path}"] if program == "train.py" else []
    result = run_program(options, workplace, program=program, input="y\n" * 50)
    last = result.stderr.splitlines()[-1]
    assert result.rc == 1 and last.startswith("error: ") and "auto_map" in last, result
    assert "Traceback" not in result.stderr and not marker.exists()


# ---- tokenizers ----

TEXT = (
    "To be, or not to be: that is the question.\n\tdef f(x):  return x\n It's 1234 or 56, naïve ☃!"
)


def trained(size: int = 400, first: bool = False):
    """A byte-level BPE of the tokenizers library; first: the special token has the lowest id."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    names = ["<|endoftext|>"] if first else []
    tokenizer.train_from_iterator([TEXT * 5] * 5, size - (not first), 2, special_tokens=names)
    if not first:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def folder_with(tmp_path: Path, tokenizer, form: str, vocab_size: int = 0) -> Path:
    folder = save(tmp_path / "hf", vocab_size=vocab_size or tokenizer.get_vocab_size())
    if form == "tokenizer.json":
        tokenizer.save(str(folder / "tokenizer.json"))
    elif form == "vocab.json":
        tokenizer.save_model(str(folder))
        added = {"<|endoftext|>": tokenizer.token_to_id("<|endoftext|>")}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>"
        )
        fast.save_pretrained(folder)
    return folder


TEXTS = [TEXT, "", " ", "  two  blanks ", "\n\n\n", "zebra 😀 xyz", "don't DON'T", "a" * 50]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "saved by transformers"])
@pytest.mark.parametrize("first", [True, False])
def test_a_folders_own_tokenizer_is_used(tmp_path, form, first):
    theirs = trained(first=first)
    loaded = load_model(str(folder_with(tmp_path, theirs, form)), "")
    ours, where = find_tokenizer(loaded)
    assert str(tmp_path / "hf") in where
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == text
    assert ours.vocab_size == theirs.get_vocab_size() > 300
    assert ours.eot == theirs.token_to_id("<|endoftext|>")
    again = tokenizers.from_dict(json.loads(json.dumps(loaded.tokenizer)))
    assert again.encode(TEXT) == ours.encode(TEXT) and again.eot == ours.eot
    slow = tokenizers.BPETokenizer(ours.tokens, ours.pattern, ours.special_tokens, fast=False)
    assert slow.encode(TEXT) == ours.encode(TEXT)  # by our own code


def test_a_vocabulary_of_gpt2s_size_is_not_taken_for_gpt2s(tmp_path):
    folder = folder_with(tmp_path, trained(), "tokenizer.json", vocab_size=50257)
    ours, _ = find_tokenizer(load_model(str(folder), ""))
    assert ours.vocab_size < 400 and ours.encode(TEXT) == trained().encode(TEXT).ids


def test_gpt2s_own_is_known_by_its_contents(tmp_path):
    """Written out in full it is still {"type": "gpt2"}; one merge less is another tokenizer."""
    need_vocabulary()
    from bonsai.tokenizers.hugging_face import read_folder
    from bonsai.tokenizers.ranks import gpt2_alphabet

    gpt2 = tokenizers.get("gpt2")
    letters = {byte: c for c, byte in gpt2_alphabet().items()}
    spelt = ["".join(letters[b] for b in token) for token in gpt2._own.tokens]
    vocab = {token: i for i, token in enumerate(spelt)} | {"<|endoftext|>": 50256}
    pairs = [["".join(letters[b] for b in part) for part in pair] for pair in gpt2._own.merges()]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, pairs)]))
    assert read_folder(tmp_path, 50257) == {"type": "gpt2"}
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, pairs[:-1])))
    state = read_folder(tmp_path, 50257)
    assert state["type"] == "bpe" and len(state["special_tokens"]) == 2


def test_an_end_of_text_of_another_name(tmp_path):
    theirs = trained()
    theirs.add_special_tokens(["</s>"])
    folder = folder_with(tmp_path, theirs, "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    loaded = load_model(str(folder), "")
    ours, _ = find_tokenizer(loaded)
    assert ours.eot == theirs.token_to_id("</s>") and ours.decode([ours.eot]) == "</s>"
    assert tokenizers.from_dict(loaded.tokenizer).eot == ours.eot


def test_data_are_prepared_with_a_folders_tokenizer(tmp_path):
    """By the folder or its tokenizer.json, with the same description as the model's."""
    theirs = trained()
    theirs.add_special_tokens(["</s>"])
    folder = folder_with(tmp_path, theirs, "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    wanted = load_model(str(folder), "").tokenizer
    for name in (folder, folder / "tokenizer.json"):
        assert tokenizers.get(name).to_dict() == wanted
    shutil.copy(folder / "tokenizer.json", tmp_path / "alone.json")
    assert tokenizers.get(tmp_path / "alone.json").encode(TEXT) == theirs.encode(TEXT).ids
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokenizers.get(folder)


def altered(**parts):
    """A tokenizer.json with other parts; model: of its model."""

    def alter(folder: Path) -> None:
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        model = parts.get("model", {})
        path.write_text(json.dumps({**state, **parts, "model": {**state["model"], **model}}))

    return alter


def shuffled(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    names = list(state["model"]["vocab"])
    state["model"]["vocab"] = {name: len(names) - 1 - i for i, name in enumerate(names)}
    path.write_text(json.dumps(state))


def with_config(**config):
    def alter(folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return alter


def other_kind(name: str, config: dict):
    def alter(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_text("[PAD]\n[UNK]\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return alter


template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}
word = {"id": 399, "content": "word", "special": False}
UNSUPPORTED = {
    "WordPiece": (altered(model={"type": "WordPiece"}), "WordPiece"),
    "Unigram": (altered(model={"type": "Unigram"}), "Unigram"),
    "dropout": (altered(model={"dropout": 0.1}), "dropout"),
    "suffix": (altered(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix"),
    "normalizer": (altered(normalizer={"type": "NFC"}), "normalizer"),
    "whitespace": (altered(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    "no pre_tokenizer": (altered(pre_tokenizer=None), "pre_tokenizer"),
    "prefix": (altered(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "ByteLevel"),
    "prefix of the config": (with_config(add_prefix_space=True), "add_prefix_space"),
    "template": (altered(post_processor=template), "post_processor"),
    "a word of its own": (altered(added_tokens=[word]), "word"),
    "no merges": (altered(model={"merges": [["a", "zzz"]]}), "merges"),
    "merges of words": (altered(model={"merges": 3}), "list"),
    "no vocabulary": (altered(model={"vocab": [1]}), "vocabulary"),
    "ids of words": (altered(model={"vocab": {"a": "b"}}), "vocabulary"),
    "huge ids": (altered(model={"vocab": {"a": 10**12}, "merges": []}), "belong together"),
    "few bytes": (altered(model={"vocab": {"a": 1}, "merges": []}), "bytes"),
    "shuffled": (shuffled, "order of its merges"),
    "wordpiece file": (other_kind("vocab.txt", {"tokenizer_class": "BertTokenizer"}), "Bert"),
    "sentencepiece": (other_kind("tokenizer.model", {}), "tokenizer.model"),
    "code": (other_kind("x.txt", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}), "auto_map"),
    "none": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer of its"),
    "damaged": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return folder_with(tmp_path_factory.mktemp("whole"), trained(), "tokenizer.json")


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_tokenizer_that_is_not_supported_is_named(whole, tmp_path, kind):
    """Never taken for OpenAI's. The weights load all the same, to be trained on prepared data."""
    folder = shutil.copytree(whole, tmp_path / "hf")
    alter, hint = UNSUPPORTED[kind]
    alter(folder)
    loaded = load_model(str(folder), "")
    assert loaded.tokenizer is None
    with pytest.raises(UserError, match=hint) as e:
        find_tokenizer(loaded)
    assert "\n" not in str(e.value) and "data/None" not in str(e.value)


def test_without_a_tokenizer_gpt2s_is_assumed_aloud(tmp_path):
    folder = save(tmp_path / "hf", vocab_size=50257)
    tokenizer, where = find_tokenizer(load_model(str(folder), ""))
    assert tokenizer.vocab_size == 50257 and "as" in where and str(folder) in where


def test_programs_with_a_folder_of_its_own_tokenizer(whole, workplace):
    options = [f"--init_from={whole}", "--num_samples=1", "--max_new_tokens=5", "--device=cpu"]
    result = run_program([*options, "--start=To be"], workplace, program="sample.py")
    assert result.rc == 0 and result.stdout.startswith("To be"), result
    assert str(whole) in result.stderr.split("tokenizer:")[1]
