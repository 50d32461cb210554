"""The C++ of the engine: built once, kept, and never a reason to fail."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from bonsai.engine.cpu import native


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's, in /tmp too, and nothing built yet in this process."""
    if native.build("attention") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    native.build.cache_clear(), native.functions.cache_clear()
    yield tmp_path / "bonsai"
    native.build.cache_clear(), native.functions.cache_clear()


def count_compilations(monkeypatch) -> list:
    calls, real = [], native.compiled

    def compiled(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(native, "compiled", compiled)
    monkeypatch.setattr(native, "OPTIONS", ["-O0", *native.OPTIONS[1:]])  # quick to build
    return calls


def test_built_once(cache, monkeypatch):
    calls = count_compilations(monkeypatch)
    assert native.build("attention") and len(calls) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    native.build.cache_clear()
    assert native.build("attention") and len(calls) == 1
    assert [p.suffix for p in cache.iterdir()] == [".so"]  # nothing unfinished
    native.build.cache_clear(), native.fingerprint.cache_clear()
    monkeypatch.setattr(native, "processor", lambda: "another")
    assert native.build("attention") and len(calls) == 2


def test_a_damaged_one_is_built_again(cache, monkeypatch):
    calls = count_compilations(monkeypatch)
    cache.mkdir(mode=0o700)
    checksum = native.fingerprint(native.shutil.which("c++"), *native.OPTIONS)
    damaged = cache / f"attention-{checksum}.so"
    damaged.write_bytes(b"\x7fEL")
    assert native.build("attention") and len(calls) == 1
    assert damaged.stat().st_size > 1000 and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_wait_for_the_compiler_is_said_on_a_terminal(cache, monkeypatch, capsys, is_terminal):
    count_compilations(monkeypatch)
    monkeypatch.setattr(native.sys.stderr, "isatty", lambda: is_terminal)
    for _ in range(2):
        assert native.build("attention")
        native.build.cache_clear()
    said = "compiling attention.cpp, once for this machine ...\n"
    assert capsys.readouterr().err == (said if is_terminal else "")


@pytest.mark.parametrize("odd", ["others may write", "no folder"])
def test_a_cache_that_cannot_be_trusted_is_not_used(cache, monkeypatch, odd):
    calls = count_compilations(monkeypatch)
    if odd == "others may write":
        cache.mkdir()
        cache.chmod(0o777)
    else:
        cache.write_text("a file")
    assert native.build("attention") and len(calls) == 1
    assert not cache.is_dir() or not os.listdir(cache)


def test_an_error_of_the_compiler_is_said(cache, monkeypatch, capsys):
    monkeypatch.setattr(native, "OPTIONS", ["-std=c++17", "-fno-such-option"])
    assert native.build("attention") is None
    assert "attention.cpp could not be built, torch computes instead: " in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="no noexec here")
@pytest.mark.parametrize("odd", ["full", "noexec"])
def test_a_tmp_that_cannot_be_used_is_not_needed(cache, monkeypatch, odd):
    """Nor for the compiler's own files, for which it looks at TMPDIR."""
    count_compilations(monkeypatch)
    if odd == "full":
        monkeypatch.setattr(native, "has_room", lambda: False)
    else:
        monkeypatch.setattr(native, "runs_no_code", lambda path: Path(path) == cache.parent / "tmp")
    run, started = subprocess.run, []

    def compile(command, **options):
        started.append((command[-1], options["env"]["TMPDIR"]))
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", compile)
    assert native.build("linear") is not None
    ((library, tmpdir),) = started
    assert library.startswith(str(cache)) and library.startswith(tmpdir)
    assert len([*cache.iterdir()]) == 1  # the library alone


def test_where_no_code_may_be_run_none_is_built(cache, monkeypatch, capsys):
    """It would take seconds at each start."""
    calls = count_compilations(monkeypatch)
    monkeypatch.setattr(native, "runs_no_code", lambda path: True)
    monkeypatch.setattr(native, "library_folder", lambda: None)
    assert native.build("linear") is None and not calls
    assert capsys.readouterr().err.startswith("linear.cpp is not built, torch computes instead: ")
