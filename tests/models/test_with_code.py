"""bonsai/models/with_code.py: folders that carry their model.py, written and read back."""

import json
import re

import pytest
import torch
from helpers.gpt2_folder import change
from helpers.tiny_model import VARIANTS, tiny

from bonsai.models import with_code
from bonsai.models.export import export_with_code
from bonsai.models.loading import Loaded, load_model
from bonsai.models.table import build_model
from bonsai.models.with_code import MODEL, WRAPPER, code, imported, same_code, shared_names
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer, CharTokenizer
from bonsai.tokenizers.chat import TEMPLATES
from model import GPT

CHARS = CharTokenizer.from_text("abcdefghijklmnopqrstuvwxyz ,.\n")  # one fewer than tiny has


def write(folder, model, tokenizer=CHARS, dtype="float32", **fields):
    source = Loaded(model, "gpt", tokenizer.to_dict(), {}, "out/ckpt.pt", **fields)
    assert export_with_code(source, tokenizer, folder, dtype) == "BonsaiForCausalLM"
    return folder


def logits(model) -> torch.Tensor:
    ids = torch.arange(16)[None]
    with torch.no_grad():
        return model(ids, ids)[0]


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_folder_is_read_back_to_the_last_bit(tmp_path, fields):
    model = tiny(**fields)
    folder = write(tmp_path / "hf", model)
    again = load_model(str(folder), overrides={"dropout": 0.1})
    assert again.model.config == type(model.config)(**{**vars(model.config), "dropout": 0.1})
    assert again.tokenizer == CHARS.to_dict()
    assert torch.equal(logits(again.model.eval()), logits(model))
    assert again.model.num_params(False) == model.num_params(False)  # what was tied is
    assert torch.equal(logits(GPT.from_pretrained(str(folder)).eval()), logits(model))
    config = json.loads((folder / "generation_config.json").read_text())
    assert config == {"suppress_tokens": [30]}  # no character has this id


def test_template_ends_and_dtype_are_written_as_for_other_folders(tmp_path):
    tokenizer, template = ByteTokenizer(), TEMPLATES["plain"]
    model = tiny(vocab_size=tokenizer.vocab_size)
    chat = template.to_dict()
    folder = write(tmp_path / "hf", model, tokenizer, "bfloat16", chat_template=chat)
    again = load_model(str(folder))
    assert again.chat_template == chat and again.tokenizer == tokenizer.to_dict()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["eos_token_id"] == tokenizer.eot
    assert torch.equal(again.model.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_the_files_of_code_are_copied_as_they_are(tmp_path):
    folder = write(tmp_path / "hf", tiny())
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    names |= {"tokenizer_config.json", "model.py", "modeling_bonsai.py"}
    assert {p.name for p in folder.iterdir()} == names
    for path in (MODEL, WRAPPER):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_other_code_is_not_executed_and_what_to_do_is_said(tmp_path):
    folder, mark = write(tmp_path / "hf", tiny()), tmp_path / "mark"
    text = MODEL.read_text(encoding="utf-8")
    (folder / "modeling_bonsai.py").write_text(f"open({str(mark)!r}, 'w')")
    (folder / "model.py").write_text("# another word\n" + text.replace("# ", "#  "))
    load_model(str(folder))  # the same code
    for other in (
        text.replace("F.relu(x).square()", "F.relu(x)"),
        text + f"\nopen({str(mark)!r}, 'w')\n",
        "not Python",
        "(" * 90_000,
        "-" * 90_000 + "1",
        "\0",
        "",
    ):
        (folder / "model.py").write_text(other)
        with pytest.raises(UserError, match="other code than the model") as e:
            load_model(str(folder))
        assert "\n" not in str(e.value) and "trust_remote_code" in str(e.value)
    (folder / "model.py").write_bytes(bytes(with_code.CODE_BYTES + 1))
    with pytest.raises(UserError, match="more than 1 MB"):
        load_model(str(folder))
    (folder / "model.py").unlink()
    with pytest.raises(UserError, match=re.escape(str(folder / "model.py"))):
        load_model(str(folder))
    assert not mark.exists()


def test_what_does_not_fit_is_one_line(tmp_path):
    folder = write(tmp_path / "hf", tiny())
    for fields, said in (
        ({"n_embd": 64}, "is .31, 32., not .31, 64."),
        ({"n_layer": 9999}, "n_layer=9999, but it has"),
        ({"n_head": "four"}, "n_head='four', where int"),
        ({"n_head": 3}, "not divisible"),
        ({"tie_head": False}, "no lm_head.weight"),
        ({"tie_head": [1]}, "tie_head=a list of other things, where bool"),
        ({"model_type": "bonsai"}, "holds a bonsai model"),
    ):
        before = (folder / "config.json").read_text()
        change(folder, **fields)
        with pytest.raises(UserError, match=said) as e:
            load_model(str(folder))
        assert "\n" not in str(e.value)
        (folder / "config.json").write_text(before)
    load_model(str(folder))


def test_models_of_bytes_are_refused(tmp_path):
    sizes = dict(n_layer=1, n_head=2, n_embd=16, local_layer=1, local_embd=8, local_head=2)
    model = build_model("megabyte", sizes | dict(block_size=16, vocab_size=257))
    source = Loaded(model, "megabyte", None, {}, "it")
    with pytest.raises(UserError, match=r"it is a megabyte, whose code is not in model\.py"):
        export_with_code(source, ByteTokenizer(), tmp_path / "hf", "float32")
    assert not (tmp_path / "hf").exists()


def test_a_model_file_that_needs_others_of_this_project_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "model.py"
    monkeypatch.setattr(with_code, "MODEL", source)
    for line in (
        "from bonsai.models.cache import Cache",
        "import configurator",
        "def f(): import bonsai",
    ):
        source.write_text(MODEL.read_text(encoding="utf-8") + f"\n{line}\n")
        with pytest.raises(UserError, match=r"model\.py imports \S+, which is missing"):
            code()
    source.write_text(MODEL.read_text(encoding="utf-8") + "\nimport einops\n")
    assert code().keys() == {"model.py", "modeling_bonsai.py"}


def test_imports_within_functions_count():
    """Also there transformers looks for them, before it loads a model from the Hub."""
    text = (
        b"import a.b\nif a:\n  from c import d\nclass E:\n  import f\n  def g(self):\n    import h"
    )
    assert imported(text) == {"a", "c", "f", "h"}


def test_shared_names():
    assert shared_names(tiny()) == {"lm_head.weight": "transformer.wte.weight"}
    assert shared_names(tiny(tie_head=False, value_embeddings=True)) == {}


def test_comments_and_docstrings_do_not_count():
    assert same_code(b"def f():\n  'One.'\n  return 1  # 1\n", b"def f():\n\n    return (1)")
    assert not same_code(b"x = 1", b"x = 2")
