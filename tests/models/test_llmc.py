"""llm.c's checkpoints: the weights of a GPT-2, read as its train_gpt2.py writes them."""

import struct

import pytest
import torch
from helpers.programs import run_program

from bonsai.models.llmc import is_llmc, read_llmc
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError
from model import GPT, GPTConfig

T, V, ROWS, L, H, C = 12, 50, 64, 3, 2, 16


def gpt2() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(T, ROWS, L, H, C, activation="gelu_tanh")).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def write(path, model: GPT, version: int = 3, **changed: int):
    """Tensor after tensor in the order of llm.c; changed: numbers of the header."""
    header = {"magic": 20240326, "version": version, "T": T, "V": V, "L": L, "H": H, "C": C}
    header |= {"rows": ROWS, **changed}
    w, dtype = model.state_dict(), torch.float32 if version == 3 else torch.bfloat16
    parts = [w["transformer.wte.weight"], w["transformer.wpe.weight"]]
    for kind in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for part in ("weight", "bias"):
            parts += [w[f"transformer.h.{i}.{kind}.{part}"] for i in range(L)]
    parts += [w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]]
    data = struct.pack("<256i", *header.values(), *[0] * (256 - len(header)))
    for part in parts:
        data += part.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version, error", [(3, 0), (5, 0.01)])
def test_the_model_is_the_one_that_was_written(tmp_path, version, error):
    model, path = gpt2(), write(tmp_path / "model.bin", gpt2(), version)
    loaded = load_model(str(path))
    assert loaded.tokenizer == {"type": "gpt2"} and loaded.name == "gpt"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, atol=error, rtol=error)
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    idx = torch.randint(V, (2, T))
    if not error:
        assert torch.equal(loaded.model.eval()(idx)[0], model(idx)[0])


def test_what_is_not_one(tmp_path):
    (tmp_path / "tokens.bin").write_bytes(b"\x00" * 100)
    (tmp_path / "short").write_bytes(b"ab")
    assert not is_llmc(tmp_path / "tokens.bin") and not is_llmc(tmp_path / "short")


DAMAGED = {
    "another version": (dict(version=1), "is of version 1 of llm.c's checkpoints, not 3 and 5"),
    "cut": ({}, "is damaged: it has"),
    "no layers": (dict(L=0), "its header says"),
    "negative": (dict(C=-16), "its header says"),
    "huge": (dict(C=2**30), "is damaged: it has"),
    "rows below the vocabulary": (dict(rows=8), "its header says"),
    "heads that do not divide": (dict(H=5), "n_embd=16 is not divisible by n_head=5"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_one_line(tmp_path, case):
    changed, said = DAMAGED[case]
    path = write(tmp_path / "model.bin", gpt2(), **{"version": 3, **changed})
    if case == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        load_model(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="less than its header"):
        read_llmc(path)


def test_a_program_takes_it(tmp_path):
    path = write(tmp_path / "model.bin", gpt2())
    result = run_program([f"--init_from={path}", "--device=cpu"], tmp_path, program="sample.py")
    assert result.rc == 1
    assert "has 64 tokens, but its gpt2 tokenizer has 50257" in result.stderr.splitlines()[-1]
