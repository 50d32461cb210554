"""What is installed: the lists agree with pyproject.toml, and the programs need the short one."""

import ast
import re
import subprocess
import sys

import pytest
from helpers.programs import ROOT, environment

PROGRAMS = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*/prepare.py")])


def listed(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {re.match(r"[\w-]+", line)[0] for line in lines if re.match(r"\w", line)}


def grouped() -> dict[str, set[str]]:
    """The packages of pyproject.toml by list; tomllib is not there before Python 3.11."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.")[0]
    lists = re.findall(r"^([\w-]+) = \[\n(.*?)^\]", text, re.M | re.S)
    return {name: set(re.findall(r'^\s+"([\w-]+)[>=<]', body, re.M)) for name, body in lists}


def test_the_lists_are_those_of_pyproject():
    groups = grouped()
    assert listed("requirements.txt") == groups.pop("dependencies")
    assert listed("requirements-all.txt") == set().union(*groups.values())


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-all.txt"])
def test_every_pin_holds_for_one_python(name):
    """Two lines for a package are for different Pythons, and none contradicts pyproject.toml."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for package in listed(name):
        lines = re.findall(rf"^{package}[=><].*$", text, re.M)
        assert len(lines) == 1 or {"python_version" in line for line in lines} == {True}, lines


def test_releases_of_torch_and_python_are_the_same_everywhere():
    """What `make matrix` runs: the ends of pyproject.toml's range; README.md names these. The pin
    lies within, and every Python from the oldest to the newest is named as tested."""

    def text(name: str) -> str:
        return (ROOT / name).read_text(encoding="utf-8")

    lowest, below = re.search(r'"torch>=2\.(\d+),<2\.(\d+)"', text("pyproject.toml")).groups()
    run = re.search(r"^TORCHES \?= (.*)$", text("Makefile"), re.M)[1].split()
    releases = [release.removesuffix(".0") for release in run]
    assert releases[0] == f"2.{lowest}" and releases[-1] == f"2.{int(below) - 1}"
    pin = int(re.search(r"^torch==2\.(\d+)\.", text("requirements.txt"), re.M)[1])
    assert int(lowest) <= pin < int(below)
    readme = " ".join(text("README.md").split())
    said = f"`make matrix` on torch {', '.join(releases[:-1])} and {releases[-1]} with Python 3."
    assert said in readme
    tested = {int(minor) for minor in re.findall(r"3\.(\d+)", readme[readme.index(said) :][:300])}
    oldest = int(re.search(r'requires-python = ">=3\.(\d+)"', text("pyproject.toml"))[1])
    assert tested == {*range(oldest, 14)} and f"Python 3.{oldest} to 3.13" in readme


def test_the_programs_start_without_what_tests_and_projects_need():
    """As after `make quickstart`: nothing of requirements-all.txt, nor what only that brings."""
    others = {name.replace("-", "_") for name in listed("requirements-all.txt")}
    others |= {"sklearn", "scipy", "pandas", "pyarrow"}
    code = f"""
import runpy, sys
for name in {sorted(others)!r}:
    sys.modules[name] = None
for path in {[str(p) for p in PROGRAMS]!r}:
    runpy.run_path(path, run_name="not main")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_is_imported_is_listed():
    """Every library that a program or a part of it imports, at the top or where it is needed."""
    short, full = listed("requirements.txt"), listed("requirements-all.txt")
    known = {name.replace("-", "_") for name in short | full} | set(sys.stdlib_module_names)
    known |= {"PIL", "sklearn", "starlette", "pydantic", "pyarrow", "readline", "certifi"}
    known |= {"anyio"}
    # of torch for CUDA, asked for there alone; a tracker that wants another pillow than is pinned
    known |= {"triton", "trackio", "yaml"}  # huggingface_hub brings yaml
    known |= {p.stem for p in ROOT.iterdir()}
    for path in [*PROGRAMS, *(ROOT / "bonsai").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known, path
