"""docs/reading.md: the walk of a token has the shapes that it says; links lead somewhere."""

import re

import pytest
import torch
from helpers.programs import ROOT
from helpers.settings import settings

from bonsai.models.table import build_model
from bonsai.tokenizers import ByteTokenizer

PAGES = [ROOT / "docs" / "reading.md", *(ROOT / "projects").glob("*/readme.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_walk_of_a_token():
    ids = ByteTokenizer().encode("def f")
    assert len(ids) == 5 and ids[-1] == 102
    config = settings("train.py", [str(ROOT / "config" / "quickstart.py")])
    model = build_model("gpt", {**config, "vocab_size": ByteTokenizer().vocab_size})
    shapes = {}

    def note(name):
        return lambda module, inputs, output: shapes.update({name: tuple(output.shape)})

    block = model.transformer.h[0]
    parts = {"wte": model.transformer.wte, "ln_1": block.ln_1, "c_attn": block.attn.c_attn}
    parts |= {"c_proj": block.attn.c_proj, "c_fc": block.mlp.c_fc, "lm_head": model.lm_head}
    for name, part in parts.items():
        part.register_forward_hook(note(name))
    idx = torch.tensor([ids])
    model(idx, idx)
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    walk = text.split("## A token walks")[1].split("\n## ")[0]
    for name, where in (
        ("wte", "`wte(idx)`"),
        ("ln_1", "`block.ln_1`"),
        ("c_attn", "`c_attn`"),
        ("c_proj", "`c_proj`"),
        ("c_fc", "`block.ln_2`"),
        ("lm_head", "`ln_f`"),
    ):
        row = next(line for line in walk.splitlines() if line.startswith(f"| {where}"))
        assert str(shapes[name]) in row, (name, shapes[name])
    heads = (1, block.attn.nh, 5, block.attn.hs)
    assert f"3 x {heads}" in walk and f"{len(model.transformer.h)} layers" in walk
    assert f"scores {(1, block.attn.nh, 5, 5)}" in walk
