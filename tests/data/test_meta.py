"""bonsai/data/meta.py: a folder's description may come from a stranger."""

import json
import pickle

import numpy as np
import pytest
from helpers.errors import one_line
from helpers.programs import Payload
from helpers.tiny_data import make_dataset

from bonsai import tokenizers
from bonsai.data.dataset import Mixture, open_dataset
from bonsai.system.errors import UserError


def test_a_meta_pkl_with_a_payload_is_refused_and_not_executed(here):
    folder, marker = make_dataset(here / "data" / "mine", "nanogpt"), here / "executed"
    for content in (Payload(marker), {"vocab_size": 30, "itos": Payload(marker)}):
        (folder / "meta.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="refused") as e:
            open_dataset("mine")
        assert "meta.pkl" in one_line(e) and "mkdir" in str(e.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload is a real one


# ---- fields of the wrong kind ----


WRONG = ("text", "", [1], [], {"a": 1}, {}, float("nan"), None, 1e12, 10**12, -1, -1.5, True, "9")


def fields(meta: dict, where: tuple = ()) -> list[tuple]:
    """The place of every value in nested dicts, the dicts themselves too."""
    paths = []
    for key, value in meta.items():
        paths.append((*where, key))
        if isinstance(value, dict):
            paths += fields(value, (*where, key))
    return paths


def changed(meta: dict, where: tuple, value) -> dict:
    copy = json.loads(json.dumps(meta))
    inner = copy
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return copy


def read_all(name: str) -> None:
    """What train.py does with a data set, up to the first batch."""
    mixture = Mixture.open(name)
    vocab_size = mixture.model_vocab_size
    assert vocab_size <= 10_000_064 and isinstance(mixture.chat_template, dict | None)
    tokenizers.from_dict(mixture.tokenizer or {"type": "byte"}).encode("the sea")
    mixture.check(block_size=16, vocab_size=vocab_size)
    for split in ("train", "val"):
        mixture.bytes_per_token(split)
        x, _ = mixture.parts[0].split(split).windows(np.arange(0, 64, 16), 16)
        assert x.max() < vocab_size


@pytest.mark.parametrize("kind", ["meta", "rows"])
def test_every_field_of_meta_json_may_be_wrong(here, kind):
    """One line, or it makes no difference; never a traceback, never an allocation of terabytes."""
    folder = make_dataset(here / "data" / "mine", kind)
    template = {"start": "", "roles": {"user": ["Q", "\n"], "assistant": ["A", "\n"]}}
    good = {**json.loads((folder / "meta.json").read_text()), "chat_template": template}
    (folder / "meta.json").write_text(json.dumps(good))
    read_all("mine")
    refused = set()
    for where in fields(good):
        for value in WRONG:
            (folder / "meta.json").write_text(json.dumps(changed(good, where, value)))
            try:
                read_all("mine")
            except UserError as e:
                assert "\n" not in str(e) and len(str(e)) < 400, e
                refused.add(where)
    harmless = {where for where in fields(good) if where not in refused}
    assert harmless == set()


def test_a_field_that_is_wrong_is_named(here):
    folder = make_dataset(here / "data" / "mine")
    good = json.loads((folder / "meta.json").read_text())
    for where, value, words in (
        (("vocab_size",), "30", "vocab_size is '30', not a whole number"),
        (("vocab_size",), 70_000, "70,000 is too large for uint16"),
        (("eot",), 30, "eot 30 is outside"),
        (
            ("splits", "val", "tokens"),
            1e12,
            r"splits\.val\.tokens is 1000000000000\.0, not a",
        ),
        (("splits", "train", "files"), ["../../etc/passwd"], "files in this folder"),
        (("splits", "train", "files"), ["/etc/passwd"], "files in this folder"),
        (("tokenizer",), {"type": "char", "chars": "abc"}, "list of characters"),
        (("tokenizer",), {"type": "words"}, "no tokenizer of type"),
        (("chat_template",), {"roles": {}}, "chat_template"),
        (("format",), 2, "format is 2"),
    ):
        (folder / "meta.json").write_text(json.dumps(changed(good, where, value)))
        with pytest.raises(UserError, match=f"meta.json is damaged .*{words}"):
            Mixture.open("mine")
    (folder / "meta.json").write_text('{"dtype": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Mixture.open("mine")


# ---- meta.pkl ----


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("field", ["vocab_size", "itos", "stoi"])
def test_every_field_of_meta_pkl_may_be_wrong(here, field, value):
    folder = make_dataset(here / "data" / "mine", "nanogpt")
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    (folder / "meta.pkl").write_bytes(pickle.dumps({**meta, field: value}))
    try:
        read_all("mine")
    except UserError as e:
        assert field == "vocab_size" and "vocab_size" in str(e)
    else:
        assert field != "vocab_size"
