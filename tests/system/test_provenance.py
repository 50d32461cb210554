"""bonsai/system/provenance.py: what stands beside a measurement can be repeated, and be stored."""

import json
import sys

import torch

from bonsai.system.commit import code_checksum
from bonsai.system.provenance import header, provenance, versions

CPU = torch.device("cpu")


def test_the_command_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out_dir=my runs", "--start=a;b"])
    assert header(CPU)[0] == "command: python train.py '--out_dir=my runs' '--start=a;b'"
    assert provenance(CPU)["command"] == "python train.py '--out_dir=my runs' '--start=a;b'"


def test_plain_values_only():
    """Checkpoints hold plain values, and tables are JSON."""
    about = provenance(CPU)
    assert json.loads(json.dumps(about)) == about
    assert all(type(value) is str for value in versions().values())
    assert {"bonsai", "torch", "python"} == set(versions())
    assert [line.split(":")[0] for line in header(CPU)] == ["command", "commit", "hardware"]
    assert f", code {code_checksum()}, bonsai " in header(CPU)[1]
