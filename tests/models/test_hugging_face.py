"""bonsai/models/hugging_face.py: other people's GPT-2, against transformers. What a folder says is
honoured or refused, and nothing in it is executed."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.gpt2_folder import SIZES, change, logits, save, transformers
from helpers.programs import run_program

from bonsai.files.safetensors import read_safetensors
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError

SIZES |= dict(eos_token_id=60)


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


@pytest.mark.parametrize("safe", [True, False])
def test_weights_without_a_config(tmp_path, safe):
    folder = save(tmp_path / "hf", safe=safe)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"hf has .*, but no config\.json"):
        load_model(str(folder), "")


def test_weights_beyond_a_link(tmp_path):
    """As the cache of the hub has them; and one that leads nowhere."""
    folder, name = save(tmp_path / "hf"), "model.safetensors"
    (folder / name).rename(tmp_path / "blob")
    (folder / name).symlink_to(tmp_path / "blob")
    assert_equal(folder)
    (tmp_path / "blob").unlink()
    with pytest.raises(UserError, match="hf has no weights"):
        load_model(str(folder), "")


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


# ---- Llama and NanoChat ----

ROTARY_SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=128, num_hidden_layers=2)
ROTARY_SIZES |= dict(num_attention_heads=4, max_position_embeddings=24, rms_norm_eps=1e-5)
ROTARY_SIZES |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "nanochat": (transformers.NanoChatConfig, transformers.NanoChatForCausalLM),
}


def save_rotary(folder: Path, kind: str = "llama", **changes) -> Path:
    torch.manual_seed(0)
    make_config, make = KINDS[kind]
    model = make(make_config(**{**ROTARY_SIZES, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


THETA = {"rope_type": "default", "rope_theta": 500.0}
LIKE_THEIRS = [
    ("llama", {}),
    ("llama", dict(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=THETA)),
    ("llama", dict(head_dim=16, num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    ("llama", dict(intermediate_size=85, attention_bias=True, mlp_bias=True)),
    ("nanochat", {}),
    ("nanochat", dict(num_key_value_heads=2, hidden_act="gelu", final_logit_softcapping=None)),
    ("nanochat", dict(tie_word_embeddings=True, final_logit_softcapping=3.0)),
]


@pytest.mark.parametrize("kind, changes", LIKE_THEIRS, ids=str)
def test_a_model_with_rotary_positions_computes_what_transformers_does(tmp_path, kind, changes):
    folder = save_rotary(tmp_path / "hf", kind, **changes)
    theirs = KINDS[kind][1].from_pretrained(folder)
    ours = load_model(str(folder), "").model.eval()
    ids = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs.eval()(ids).logits
    assert want.std() > 0.2
    torch.testing.assert_close(logits(ours, ids), want, atol=2e-4, rtol=1e-4)


EPSILONS = [
    ("llama", dict(rms_norm_eps=1e-6, tie_word_embeddings=True)),
    ("llama", dict(rms_norm_eps=1e-3, num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    ("llama", dict(rms_norm_eps=1e-7, intermediate_size=85)),
    ("nanochat", dict(rms_norm_eps=1e-6)),
    ("nanochat", dict(rms_norm_eps=1e-7, num_key_value_heads=2)),
]


@pytest.mark.parametrize("kind, changes", EPSILONS, ids=str)
def test_another_epsilon_of_the_norms_computes_the_same(tmp_path, kind, changes):
    """Where it matters: the embeddings of a Llama, queries and keys are short."""
    folder = save_rotary(tmp_path / "hf", kind, **changes)
    theirs = KINDS[kind][1].from_pretrained(folder).eval()
    ids = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs.model.embed_tokens.weight *= 0.01
        if kind == "nanochat":
            for layer in theirs.model.layers:
                layer.self_attn.q_proj.weight *= 0.003
                layer.self_attn.k_proj.weight *= 0.003
        theirs.save_pretrained(folder)
        want = theirs(ids).logits
        torch.testing.assert_close(logits(load_model(str(folder)).model.eval(), ids), want,
                                   atol=1e-4, rtol=1e-4)  # fmt: skip
        change(folder, rms_norm_eps=1e-5)
        other = logits(load_model(str(folder)).model.eval(), ids)
        assert (other - want).abs().max() > 1e-3


def test_a_tied_head_of_nanochat_has_our_epsilon_or_none(tmp_path):
    """There is no gain in which a longer embedding could be undone."""
    folder = save_rotary(tmp_path / "hf", "nanochat", tie_word_embeddings=True, rms_norm_eps=1e-6)
    with pytest.raises(UserError, match="rms_norm_eps=1e-06 with a tied head is not supported"):
        load_model(str(folder))


def test_where_llamas_wrote_their_base_before(tmp_path):
    folder = save_rotary(tmp_path / "hf")
    state = json.loads((folder / "config.json").read_text())
    del state["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(state | {"rope_theta": 777}))
    assert load_model(str(folder)).model.config.rope_base == 777.0


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize("kind, changes, hint", [
    ("llama", dict(rms_norm_eps="1e-6"), "rms_norm_eps"),
    ("llama", dict(rms_norm_eps=0), "rms_norm_eps=0"),
    ("llama", dict(rms_norm_eps=float("nan")), "rms_norm_eps"),
    ("llama", dict(hidden_act="gelu"), "hidden_act"),
    ("llama", dict(intermediate_size=129), "intermediate_size=129.*one to four times"),
    ("llama", dict(intermediate_size=31), "intermediate_size=31"),
    ("llama", dict(intermediate_size=100), "mlp.* but intermediate_size=100"),
    ("llama", dict(intermediate_size="a"), "intermediate_size"),
    ("llama", dict(attention_bias=True), "attention_bias without mlp_bias"),
    ("llama", dict(attention_bias=True, mlp_bias=True), "no .*bias"),
    ("llama", dict(attention_bias=1), "not true or false"),
    ("llama", dict(rope_parameters=SCALED), "rope_parameters"),
    ("llama", dict(rope_parameters=[1]), "rope_theta"),
    ("llama", dict(rope_parameters={"rope_theta": float("nan")}), "rope_theta"),
    ("llama", dict(rope_parameters=THETA | {"partial_rotary_factor": 0.5}), "rope_parameters"),
    ("llama", dict(rope_scaling={"type": "linear"}), "rope_scaling"),
    ("llama", dict(quantization_config={"bits": 4}), "quantization_config"),
    ("llama", dict(num_hidden_layers=10**9), "n_layer"),
    ("llama", dict(num_hidden_layers=3), "does not fit"),
    ("llama", dict(num_hidden_layers=1), "too much"),
    ("llama", dict(num_attention_heads=5), "does not fit"),
    ("llama", dict(num_key_value_heads=3), "not divisible by n_kv_head"),
    ("llama", dict(head_dim=2**30), "does not fit|too large"),
    ("llama", dict(head_dim=7), "even head size"),
    ("llama", dict(hidden_size=None), "hidden_size"),
    ("llama", dict(auto_map={"AutoModelForCausalLM": "evil.Evil"}), "auto_map"),
    ("nanochat", dict(rms_norm_eps=1e-4), "rms_norm_eps=0.0001"),
    ("nanochat", dict(intermediate_size=100), "intermediate_size=100"),
    ("nanochat", dict(attention_bias=True), "attention_bias"),
    ("nanochat", dict(final_logit_softcapping=-1), "final_logit_softcapping"),
    ("nanochat", dict(final_logit_softcapping="a"), "final_logit_softcapping"),
    ("nanochat", dict(hidden_act="silu"), "hidden_act"),
    ("nanochat", dict(head_dim=64), "does not fit"),
], ids=str)  # fmt: skip
def test_a_config_with_rotary_positions_is_honoured_or_refused(tmp_path, kind, changes, hint):
    folder = save_rotary(tmp_path / "hf", kind)
    change(folder, **changes)
    with pytest.raises(UserError, match=hint) as e:
        load_model(str(folder), "")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_config_cannot_ask_for_more_memory_than_there_are_weights(tmp_path):
    folder = save_rotary(tmp_path / "hf")
    change(folder, hidden_size=2**30, intermediate_size=2**30)
    with pytest.raises(UserError, match=r"does not fit|too large|intermediate_size"):
        load_model(str(folder), "")
