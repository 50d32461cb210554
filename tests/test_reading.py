"""The documents: links lead somewhere, a walk has its shapes, the notebook its form."""

import re
from pathlib import Path

import pytest
import torch
from helpers.programs import ROOT
from helpers.settings import settings

from bonsai.models.table import build_model
from bonsai.tokenizers import ByteTokenizer

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/*/readme.md")])


def anchors(page: Path) -> set[str]:
    """The fragments by which the headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    words = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            path, _, fragment = link.partition("#")
            to = page.parent / path if path else page
            assert to.exists(), link
            assert not fragment or fragment in anchors(to), link


FOLDERS = "bonsai|benchmarks|config|docs|projects|tests|web"
FILE = rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\.(?:py|md|cpp|h|sh|html|png|svg))\b"
EXAMPLES = {"config/small.py", "config/FILE.py", "docs/race.png"}  # of what a user could write


def code() -> list[Path]:
    """Python, C++ and shell of the repository, its tests apart."""
    folders = [ROOT / name for name in (*FOLDERS.split("|"), "data") if name != "tests"]
    files = [*ROOT.glob("*.py"), ROOT / "Makefile"]
    kinds = (".py", ".cpp", ".h", ".js", ".sh")
    return files + [p for f in folders for p in f.rglob("*") if p.suffix in kinds]


def test_files_that_are_named_are_there():
    """In documents and in the code's comments; the notebook names those of its day."""
    for page in [p for p in PAGES if p.name != "LOG.md"] + code():
        for name in set(re.findall(FILE, page.read_text(encoding="utf-8"))) - EXAMPLES:
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


def test_names_in_documents_are_names_of_the_code():
    words = {w for p in code() for w in re.findall(r"\w+", p.read_text(encoding="utf-8"))}
    for page in [p for p in PAGES if p.name != "LOG.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for name in re.findall(r"`(?!torch\.)([A-Za-z_][\w.]*)`", text):
            missing = set(name.split(".")) - words - {"", "Makefile", "Paris", "FOLDER_bpe"}
            assert not missing, f"{page.relative_to(ROOT)} names {name}"


def test_an_entry_of_the_notebook_has_a_verdict_and_ten_lines_at_most():
    text = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    entries = [entry.strip().splitlines() for entry in text.split("\n## ")[1:]]
    for heading, *lines in entries:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \S.*: \S.*", heading), f"no verdict: {heading}"
        assert len([line for line in lines if line.strip()]) <= 10, heading
        assert all(len(line) <= 122 for line in (heading, *lines)), heading
    days = [heading[:10] for heading, *_ in entries]
    assert days == sorted(days)  # newest last


def test_the_limits_of_the_server_are_those_that_stand_there():
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text.split("## Limits and safety")[1], re.M)
    default = settings("serve.py", [])
    assert len(rows) == 6
    assert all(default[name] == float(limit) for name, limit in rows)


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
