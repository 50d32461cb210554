"""The package that pip builds: it has all that the programs need, and trains from anywhere."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.programs import ROOT, TINY, load, run_command
from helpers.settings import PROGRAMS

from bonsai.system import commands

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network, from a copy: pip leaves its own files beside the sources."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("bonsai", "config", "web"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in (*ROOT.glob("*.py"), *(ROOT / n for n in ("pyproject.toml", "README.md"))):
        shutil.copy(path, source)
    done = subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_package_has_every_file(wheel):
    """A room, a program or a part of the page that pyproject.toml does not name is left out."""
    files = [p for p in (ROOT / "bonsai").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    wanted = {p.relative_to(ROOT).as_posix() for p in files}
    wanted |= {"model.py", "configurator.py", *(f"bonsai/programs/{name}" for name in PROGRAMS)}
    for folder in ("config", "web"):
        names = [p.name for p in (ROOT / folder).iterdir() if p.is_file()]
        wanted |= {f"bonsai/programs/{folder}/{name}" for name in names}
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert built == wanted


def test_every_program_is_a_command():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = dict(re.findall(r'^bonsai-([\w-]+) = "bonsai.system.commands:(\w+)"$', text, re.M))
    programs = {name: getattr(commands, attribute).args for name, attribute in named.items()}
    assert programs == {Path(p).stem.replace("_", "-"): (Path(p).stem,) for p in PROGRAMS}


def test_two_steps_from_another_folder(wheel, workplace, tmp_path):
    target, out = tmp_path / "target", tmp_path / "out"
    install = [*PIP, "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    options = [*TINY, "--dataset=meta", "--max_iters=2", "--eval_interval=2", f"--out_dir={out}"]
    command = [sys.executable, str(target / "bin" / "bonsai-train"), "config/quickstart.py"]
    if os.name == "nt":
        command = [str(target / "bin" / "bonsai-train.exe"), command[-1]]
    helped = run_command([command[0], command[1], "--help"], tmp_path, {"PYTHONPATH": str(target)})
    assert "usage: bonsai-train [" in helped.stdout, helped
    done = run_command([*command, *options], workplace, {"PYTHONPATH": str(target)})
    assert done.rc == 0, done
    assert load(out / "last.pt")["iter_num"] == 2
    head = (out / "log.txt").read_text().splitlines()
    assert str(target) in head[0] and "commit: unknown" in head[1]
