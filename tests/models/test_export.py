"""bonsai/models/export.py: what others load of it, without our code, computes the same."""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch
from helpers.gpt2_folder import logits, transformers
from helpers.programs import ROOT, load
from helpers.tiny_model import VARIANTS, texts, tiny

from bonsai.engine.text import find_tokenizer
from bonsai.files.safetensors import read_with_metadata, write_safetensors
from bonsai.models.export import export_hugging_face, export_nanogpt, portable
from bonsai.models.loading import Loaded, load_model
from bonsai.models.table import build_model
from bonsai.runs.portable import write_portable
from bonsai.system.errors import UserError
from bonsai.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES

CHARS = CharTokenizer.from_text("abcdefghijklmnopqrstuvwxyz ,.\n")
LLAMA = dict(norm="rmsnorm", activation="swiglu", position="rope", bias=False)
FAST = dict(norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope", bias=False)
FAST |= dict(qk_norm=True, activation="relu2")
SHAPES = {  # class there -> fields of models, beyond its own
    "GPT2LMHeadModel": [
        {},
        dict(bias=False),
        dict(tie_head=False, n_head=3, n_embd=15, n_layer=3, block_size=13),
        dict(activation="gelu_tanh", norm_bias=True, bias=False),
        dict(activation="relu2", norm_gain=False, n_kv_head=4, head_size=8, attention_window=16),
        dict(activation="relu", attention_scale=0.3, qk_norm=False),
        dict(attention_scale=1.0),
    ],
    "LlamaForCausalLM": [
        LLAMA,
        LLAMA | dict(tie_head=False, n_kv_head=2, rope_base=500.0),
        LLAMA | dict(bias=True, norm_gain=False, attention_scale=0.1, block_size=11, n_layer=3),
        LLAMA | dict(n_head=3, n_embd=30, head_size=4, n_kv_head=1),
    ],
    "NanoChatForCausalLM": [
        FAST | dict(tie_head=False, logit_softcap=15.0),
        FAST | dict(n_kv_head=2, rope_base=1024.0, activation="gelu"),
        FAST | dict(n_head=3, n_embd=30, head_size=4, block_size=9, activation="gelu_tanh"),
    ],
}
CASES = [(name, fields) for name, cases in SHAPES.items() for fields in cases]


def loaded(tokenizer=CHARS, checkpoint: dict | None = None, pad: int = 3, **fields) -> Loaded:
    model = tiny(vocab_size=tokenizer.vocab_size + pad, **fields)
    source = Loaded(model, "gpt", tokenizer.to_dict(), {}, "out/ckpt.pt", checkpoint)
    source.chat_template = (checkpoint or {}).get("chat_template")
    return source


@pytest.mark.parametrize("name, fields", CASES, ids=lambda v: str(v)[:60])
def test_transformers_computes_the_same_and_so_do_we_of_its_folder(tmp_path, name, fields):
    source, folder = loaded(**fields), tmp_path / "hf"
    assert export_hugging_face(source, CHARS, folder, "float32") == name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert type(theirs).__name__ == name and theirs.dtype == torch.float32
    model, V = source.model, CHARS.vocab_size
    ids = torch.randint(V, (2, model.config.block_size))
    want = logits(model, ids)[..., :V]  # the padding of the vocabulary is cut off
    with torch.no_grad():
        given = theirs.eval()(ids).logits
    assert want.std() > 0.1
    torch.testing.assert_close(given, want, atol=1e-4, rtol=1e-4)

    again = load_model(str(folder))
    torch.testing.assert_close(logits(again.model.eval(), ids), want, atol=1e-5, rtol=1e-5)
    ours, wanted = again.model.state_dict(), model.state_dict()
    folded = fields.get("attention_scale", 1.0) != 1.0
    for key in wanted:  # what was filled in besides is zeros and ones
        if not (folded and ".c_attn." in key):
            assert torch.equal(ours[key], wanted[key][: len(ours[key])]), key
    assert find_tokenizer(again)[0].to_dict() == CHARS.to_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def trained(tokenizer, text: str, steps: int) -> Loaded:
    source = loaded(tokenizer, pad=0, block_size=32, **SHAPES["NanoChatForCausalLM"][0])
    data, model = torch.tensor(tokenizer.encode(text)), source.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(data) - 33, (8,))
        rows = torch.stack([data[start : start + 33] for start in starts])
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:])[1].backward()
        optimizer.step()
    model.eval()
    return source


@pytest.mark.parametrize("steps, shorter", [(200, 1), (200, 0.3), (0, 0.1)])
def test_short_queries_and_keys_have_the_norm_that_they_had(tmp_path, steps, shorter):
    """Its epsilon is another there: bonsai/models/architectures.py, QK_LENGTHS."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    coder = CharTokenizer.from_text(text)
    source = trained(coder, text, steps)
    model = source.model
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[: 2 * model.config.n_embd] *= shorter
    export_hugging_face(source, coder, tmp_path / "hf", "float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor(coder.encode(text[:320])).view(10, 32)
    with torch.no_grad():
        given = theirs(ids).logits
    torch.testing.assert_close(given, logits(model, ids), atol=1e-4, rtol=1e-4)
    again = load_model(str(tmp_path / "hf")).model.state_dict()
    assert all(torch.equal(again[key], w) for key, w in model.state_dict().items())


@pytest.mark.parametrize("fields", [{}, LLAMA | dict(n_kv_head=2)], ids=["gpt2", "llama"])
def test_an_exported_model_exports_to_the_same_bytes(tmp_path, fields):
    export_hugging_face(loaded(**fields), CHARS, tmp_path / "a", "float32")
    again = load_model(str(tmp_path / "a"))
    export_hugging_face(again, find_tokenizer(again)[0], tmp_path / "b", "float32")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", SHAPES)
def test_a_pipeline_writes_the_same_greedy_text(tmp_path, name):
    bpe = BPETokenizer.train(["To be, or not to be: that is the question. naïve ☃!\n"] * 3, 280)
    source = loaded(bpe, pad=0, **SHAPES[name][0])
    assert export_hugging_face(source, bpe, tmp_path / "hf", "float32") == name
    write = transformers.pipeline("text-generation", model=str(tmp_path / "hf"), device="cpu")
    text = write("To be", max_new_tokens=9, do_sample=False)[0]["generated_text"]
    prompt = bpe.encode("To be")
    (row,) = texts(source.model, prompt, max_new_tokens=9, temperature=0)
    assert bpe.eot not in row and text == bpe.decode([*prompt, *row])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_weights(tmp_path, dtype):
    source = loaded()
    export_hugging_face(source, CHARS, tmp_path / "hf", dtype)
    write_portable(tmp_path / "a.safetensors", portable(source, CHARS, dtype))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == getattr(torch, dtype)
    for name in ("hf", "a.safetensors"):
        ours = load_model(str(tmp_path / name)).model.transformer.wte.weight
        want = source.model.transformer.wte.weight[: len(ours)].to(theirs.dtype).float()
        assert torch.equal(ours, want)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_that_float16_does_not_hold_are_named(tmp_path, name):
    """One that was infinite before stays as it is."""
    source = loaded(**SHAPES[name][0])
    writers = {
        "hf": lambda path, dtype: export_hugging_face(source, CHARS, path, dtype),
        "a.safetensors": lambda path, dtype: write_portable(path, portable(source, CHARS, dtype)),
    }
    if name == "GPT2LMHeadModel":
        writers["nano"] = lambda path, dtype: export_nanogpt(source, CHARS, path, dtype)
    with torch.no_grad():
        source.model.transformer.h[1].attn.c_proj.weight[0, 0] = 1e5
        source.model.transformer.wte.weight[0, 0] = torch.inf  # it was so before
    for file, write in writers.items():
        with pytest.raises(UserError, match=r"1\..*proj.weight has weights beyond 65504"):
            write(tmp_path / file, "float16")
        assert not list(tmp_path.iterdir())
        write(tmp_path / file, "bfloat16")
        (shutil.rmtree if (tmp_path / file).is_dir() else os.remove)(tmp_path / file)


def test_what_config_and_generation_say(tmp_path):
    export_hugging_face(loaded(dropout=0.25), CHARS, tmp_path / "chars", "float32")
    config = json.loads((tmp_path / "chars" / "config.json").read_text())
    assert config["resid_pdrop"] == config["attn_pdrop"] == 0.25
    assert config["bos_token_id"] is config["eos_token_id"] is None
    assert json.loads((tmp_path / "chars" / "generation_config.json").read_text()) == {}
    template = {"roles": {"user": ["Q: ", "\n"], "assistant": ["A: ", "\n"], "\ud83d": ["", ""]}}
    bytes_ = ByteTokenizer()
    source = loaded(bytes_, {"chat_template": template})
    export_hugging_face(source, bytes_, tmp_path / "bytes", "float32")
    ends = transformers.GenerationConfig.from_pretrained(tmp_path / "bytes")
    assert ends.eos_token_id == ends.bos_token_id == 256
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bytes")
    chat = [{"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "Q: Why?\nA: "


def test_generation_stops_where_an_answer_ends(tmp_path):
    names = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    tokenizer = BPETokenizer.train(["to be or not to be " * 9], 270, special_tokens=names)
    for name in ("plain", "tokens"):
        source = loaded(tokenizer, {"chat_template": TEMPLATES[name].to_dict()})
        export_hugging_face(source, tokenizer, tmp_path / name, "float32")
    ends = [
        transformers.GenerationConfig.from_pretrained(tmp_path / n) for n in ("plain", "tokens")
    ]
    eot, end = tokenizer.eot, tokenizer.special_tokens["<|end|>"]
    assert [e.eos_token_id for e in ends] == [eot, [eot, end]]


NO_PLACE = {
    "windows": "attention_window=5, window_pattern=DL|attention_window=5",
    "bigrams": "bigram_embeddings=2",
    "values, lambdas, windows of all layers": "residual_lambdas=True",
    "post norm, relu": "norm_placement=post",
    "rmsnorm, swiglu": "position=learned",
}


@pytest.mark.parametrize("case", NO_PLACE)
def test_a_field_without_a_place_is_named_and_nothing_is_written(tmp_path, case):
    with pytest.raises(UserError, match=NO_PLACE[case]) as e:
        export_hugging_face(loaded(**VARIANTS[case]), CHARS, tmp_path / "hf", "float32")
    assert "has no place for" in str(e.value) and "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_the_scale_of_the_fast_recipe_has_no_place():
    fields = FAST | dict(tie_head=False, attention_scale=0.12)
    with pytest.raises(UserError, match=r"NanoChatForCausalLM, has no place for attention_scale"):
        export_hugging_face(loaded(**fields), CHARS, "nowhere", "float32")


def test_a_model_of_bytes_goes_into_our_own_file_alone(tmp_path):
    sizes = dict(n_layer=1, n_head=2, n_embd=16, local_layer=1, local_embd=8, local_head=2)
    model = build_model("megabyte", sizes | dict(block_size=16, vocab_size=257))
    source = Loaded(model, "megabyte", {"type": "byte"}, {}, "out", None)
    for write in (export_hugging_face, export_nanogpt):
        with pytest.raises(UserError, match="megabyte, for which others have no class"):
            write(source, ByteTokenizer(), tmp_path / "hf", "float32")
    path = tmp_path / "model.safetensors"
    write_portable(path, portable(source, ByteTokenizer(), "float32"))
    again = load_model(str(path))
    assert again.name == "megabyte" and again.model.config == model.config
    for key, w in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], w)


@pytest.mark.parametrize("write", [export_hugging_face, export_nanogpt])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, write):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"the disk is full while writing .*hf"):
        write(loaded(), CHARS, tmp_path / "hf", "float32")
    assert not list(tmp_path.iterdir())


WRONG = {
    "scalar": (lambda w: w.flatten()[0].clone(), "not"),
    "integers": (lambda w: w.long(), "is of torch.int64"),
    "bytes": (lambda w: w.byte(), "is of torch.uint8"),
    "bools": (lambda w: w.bool(), "is of torch.bool"),
    "nothing": (lambda w: w[:0], "not"),
    "one more dimension": (lambda w: w[None], "not"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_of_another_kind_or_shape_is_named(tmp_path, name):
    """Each of the first layer's, and those around the layers."""
    source, path = loaded(**SHAPES[name][0]), tmp_path / "hf" / "model.safetensors"
    export_hugging_face(source, CHARS, path.parent, "float32")
    good, metadata = read_with_metadata(path)
    for key in [key for key in good if ".1." not in key]:
        for change, hint in WRONG.values():
            write_safetensors(path, good | {key: change(good[key])}, metadata)
            with pytest.raises(UserError, match=hint) as e:
                load_model(str(path.parent))
            assert "\n" not in str(e.value)
        write_safetensors(path, good | {key: good[key].double()}, metadata)
        again = load_model(str(path.parent)).model.state_dict()
        wanted = source.model.state_dict()
        assert all(torch.equal(w, wanted[k][: len(w)]) for k, w in again.items())


def test_another_who_wrote_it_meanwhile_keeps_his(tmp_path, monkeypatch):
    path, flush = tmp_path / "a.safetensors", os.fsync

    def meanwhile(fd):
        flush(fd)
        path.write_text("theirs")

    monkeypatch.setattr("os.fsync", meanwhile)
    with pytest.raises(UserError, match=r"cannot write .*a\.safetensors: File exists"):
        write_portable(path, portable(loaded(), CHARS, "float32"))
    assert path.read_text() == "theirs" and [*tmp_path.iterdir()] == [path]


# ---- nanoGPT ----


def test_a_classic_model_for_nanogpt(tmp_path):
    source = loaded(checkpoint={"iter_num": 7, "best_val_loss": torch.tensor(1.5)}, bias=False)
    files = export_nanogpt(source, CHARS, tmp_path / "out", "float32")
    assert files == ["ckpt.pt", "meta.pkl"]
    state = load(tmp_path / "out" / "ckpt.pt")
    assert state["model_args"]["vocab_size"] == CHARS.vocab_size and state["iter_num"] == 7
    assert list(state["model"]) == list(source.model.state_dict())
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert meta["stoi"]["a"] == CHARS.encode("a")[0]
    (tmp_path / "data" / "x").mkdir(parents=True)
    again = load_model(str(tmp_path / "out"))
    ids = torch.randint(CHARS.vocab_size, (2, 9))
    want = logits(source.model, ids)[..., : CHARS.vocab_size]
    torch.testing.assert_close(logits(again.model.eval(), ids), want)


def test_what_nanogpt_has_not_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nanoGPT's, which has no .*activation=gelu_tanh"):
        export_nanogpt(loaded(activation="gelu_tanh"), CHARS, tmp_path / "out", "float32")
    assert export_nanogpt(loaded(ByteTokenizer()), ByteTokenizer(), tmp_path / "a", "float32") == [
        "ckpt.pt"
    ]
