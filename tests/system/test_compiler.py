"""bonsai/system/compiler.py: what is missing to compile a model, and how kernels are launched."""

import ast
import sys

import pytest
import torch

from bonsai import ROOT
from bonsai.system import compiler as compiler_module
from bonsai.system.compiler import pick_compile


@pytest.mark.parametrize("asked", ["auto", True])
@pytest.mark.parametrize(
    "capability, triton, compiler, header, said",
    [
        ((9, 0), True, True, True, ""),
        ((7, 5), True, True, True, ""),
        ((6, 1), True, True, True, "before Volta"),
        ((9, 0), False, True, True, "no triton"),
        ((9, 0), True, False, True, "no C compiler"),
        ((9, 0), True, True, False, "no Python.h"),
    ],
)
def test_without_a_compiler_all_is_done_uncompiled(
    monkeypatch, asked, capability, triton, compiler, header, said
):
    monkeypatch.setattr(compiler_module, "has_python_header", lambda: header)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(compiler_module, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(compiler_module, "which", lambda name: "/usr/bin/cc" if compiler else None)
    compiled, why = pick_compile(asked, torch.device("cuda"))
    assert compiled == (not said) and said in why
    compiled, why = pick_compile(asked, torch.device("cpu"))  # which needs no triton
    can = compiler and header
    assert compiled == (asked is True and can) and (asked == "auto" or bool(why) != can)
    assert pick_compile(False, torch.device("cuda")) == (False, "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they come with Python")
@pytest.mark.parametrize("there", [True, False])
def test_where_pythons_headers_are(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiler_module.sysconfig, "get_path", lambda *names: str(tmp_path))
    assert compiler_module.has_python_header() == there


def test_on_a_cpu_a_compiler_of_c_alone_is_none(monkeypatch):
    """As on a machine with gcc, but without g++: torch would fail at the first step."""
    monkeypatch.setattr(compiler_module, "has_python_header", lambda: True)
    monkeypatch.setattr(compiler_module, "which", lambda name: None if "++" in name else name)
    monkeypatch.setattr(compiler_module, "CXX", "g++")
    compiled, why = pick_compile(True, torch.device("cpu"))
    assert not compiled and "no C++ compiler g++" in why
    monkeypatch.setattr(compiler_module, "CXX", "/opt/bin/c")
    assert pick_compile(True, torch.device("cpu")) == (True, "")


def test_launches_of_our_kernels_say_that_products_and_sums_are_fused():
    """Each one, whose default is another in newer releases of Triton."""
    launches = 0
    for path in (ROOT / "bonsai").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "import triton\n" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                given = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
                known = ("FUSED", "options", "launch_options(overlap)")
                assert any(name in known for name in given), f"{path}:{node.lineno}"
                launches += 1
    assert launches >= 10
