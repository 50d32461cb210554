"""Startup and errors.run: how every program ends when it is stopped, or cannot print."""

import ast
import errno
import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.programs import ROOT, assert_one_line_error, environment, run_program

from bonsai.system.errors import run

PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "data/*/prepare.py", "projects/*/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if "    run(" in path.read_text(encoding="utf-8")
)
ENDS = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGHUP": (129, "closed")}
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# In place of a library: to be stopped while it loads.
LOADING = """
import os, signal, time
os.kill(os.getpid(), signal.{name})
time.sleep(60)
"""


def libraries(folder: Path, content: str) -> dict[str, str]:
    """The environment in which a program finds this instead of the libraries that take time."""
    for name in ("numpy", "torch", "tqdm", "tiktoken", "regex", "psutil"):
        (folder / f"{name}.py").write_text(content)
    return {"PYTHONPATH": str(folder)}


@needs_posix
def test_ctrl_c_before_the_first_of_our_modules_is_no_traceback():
    """While startup.py itself still loads what it says the line with."""
    code = "import os, signal, sys\nclass Stop:\n    def find_spec(self, name, *_):\n"
    code += "        if name.endswith('errors'):\n            os.kill(os.getpid(), signal.SIGINT)\n"
    code += "sys.meta_path.insert(0, Stop())\nimport bonsai.system.startup"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT and done.stderr == "", done


def test_garbage_is_collected_from_run_on_but_not_sought_in_the_libraries():
    code = "import gc, bonsai.system.startup\nfrom bonsai.system.errors import run\n"
    code += "def look(): print(gc.isenabled(), gc.get_freeze_count() > 1000)\nlook()\nrun(look)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["False False", "True True", ""], done


def test_where_run_is_only_called_the_garbage_is_python_s():
    frozen = gc.get_freeze_count()
    with pytest.raises(SystemExit):
        run(lambda: 0)
    assert gc.isenabled() and gc.get_freeze_count() <= frozen  # what others froze may go


@needs_posix
@pytest.mark.parametrize("name", ENDS)
def test_a_signal_while_the_libraries_load_is_one_line(tmp_path, name):
    """In every program, wherever its imports stand."""
    env = libraries(tmp_path, LOADING.format(name=name))

    def stop(program: str):
        return run_program(["--no_such=1"], tmp_path, env, program=program, timeout=50)

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(PROGRAMS, pool.map(stop, PROGRAMS)))
    status, word = ENDS[name]
    stopped = {p: result for p, result in results.items() if result.rc != 2}  # 2: loads none first
    assert len(stopped) > 25
    for program, result in stopped.items():
        assert result.rc == status, (program, result)
        assert len(result.stderr.splitlines()) == 1, (program, result)
        assert result.stderr.startswith("error: ") and word in result.stderr, (program, result)


@pytest.mark.parametrize(
    "failure",
    [
        "MemoryError",
        "OSError(12, 'Cannot allocate memory')",
        "ImportError('libtorch_cpu.so: failed to map segment from shared object')",
    ],
)
def test_short_memory_while_the_libraries_load_is_one_line(tmp_path, failure):
    env = libraries(tmp_path, f"raise {failure}")
    for program in ("train.py", "serve.py"):
        assert_one_line_error(run_program([], tmp_path, env, program=program), "out of memory")


@pytest.mark.parametrize(
    "failure",
    [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory", "a.bin")]
    + [ImportError("failed to map segment")],
)
def test_short_memory_in_a_program_is_one_line(capsys, failure):
    def fails():
        raise failure

    with pytest.raises(SystemExit) as e:
        run(fails)
    assert e.value.code == 1
    assert capsys.readouterr().err.startswith("error: out of memory")


class PanicException(BaseException):
    """As of libraries in Rust."""


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        PanicException('ThreadPoolBuildError { "Resource temporarily unavailable" }'),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_limit_on_threads_is_not_called_one_on_memory(capsys, failure):
    def fails():
        raise failure

    with pytest.raises(SystemExit) as e:
        run(fails)
    said = capsys.readouterr().err
    assert e.value.code == 1 and said.count("\n") == 1
    assert said.startswith("error: the system starts no more threads") and "ulimit -u" in said


def test_a_library_that_may_not_be_run_is_not_short_memory(capsys, monkeypatch, tmp_path):
    """The loader's words are the same, so the file system is asked."""
    from torch._inductor.exc import InductorError

    library, flags = tmp_path / "not there" / "a.so", [0]
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda path: SimpleNamespace(f_flag=flags[0] if tmp_path.samefile(path) else 0),
    )

    def loads():
        cause = ImportError(f"{library}: failed to map segment from shared object")
        raise InductorError(cause, None)

    said = []
    for flags[0] in (0, os.ST_NOEXEC):
        with pytest.raises(SystemExit):
            run(loads)
        said.append(capsys.readouterr().err)
    assert said[0].startswith("error: out of memory")
    assert f"no code may be run from the file system of {library} (noexec)" in said[1]
    assert "TORCHINDUCTOR_CACHE_DIR" in said[1] and said[1].count("\n") == 1


@pytest.mark.parametrize(
    "cause, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "(the disk is full): free some space"),
        (PermissionError(13, "Permission denied", "/c/locks"), "(Permission denied: /c/locks): "),
        (OSError(errno.EROFS, "Read-only file system", "/c"), "(Read-only file system: /c): free"),
        (RuntimeError("C++ compile error: /tmp/a.s: No space left on device"), "disk is full"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (ValueError("of the compiler's own"), None),
    ],
)
def test_a_compiler_that_cannot_keep_its_work_is_one_line(capsys, cause, said):
    from torch._inductor.exc import InductorError

    def compiles():
        raise InductorError(cause, None)

    with pytest.raises(SystemExit if said else InductorError):
        run(compiles)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said) and (said or "") in "".join(lines)


def test_ctrl_c_is_ctrl_c_whatever_wraps_it(capfd):
    """As while a class is made, in torch's import: RuntimeError from KeyboardInterrupt."""

    class Field:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    def in_a_class():
        type("Owner", (), {"field": Field()})

    def in_an_import():
        try:
            in_a_class()
        except (RuntimeError, KeyboardInterrupt) as e:
            raise ImportError("cannot import") from e

    for step in (in_a_class, in_an_import):
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as e:
                run(step)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert e.value.code == 130
        assert capfd.readouterr().err.strip() == "error: interrupted"


def test_a_missing_package_is_one_line():
    """In every program: mostly the environment was not activated."""

    def start(program: str):
        command = [sys.executable, "-S", program, "--no_such=1"]  # -S: the standard library alone
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(PROGRAMS, pool.map(start, PROGRAMS)))
    missing = {p: done for p, done in results.items() if done.returncode != 2}  # 2: needs none here
    assert len(missing) > 25
    for program, done in missing.items():
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (program, done)
        assert re.match(r"error: \S+ has no (torch|numpy|psutil|tqdm);", done.stderr), done
        assert ".venv/bin/activate" in done.stderr


def test_the_command_that_is_printed_is_one_for_the_shell(tmp_path):
    clone = tmp_path / "my clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "activate").touch()
    (clone / "Makefile").touch()
    code = "import pathlib, sys; import bonsai.system.startup as s; "
    code += "s.ROOT = pathlib.Path(sys.argv[1]); print(s.environment())"
    command = [sys.executable, "-S", "-c", code, str(clone)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    words = shlex.split(done.stdout)
    assert words == ["run:", "source", str(clone / ".venv" / "bin" / "activate")], done


@pytest.mark.parametrize(
    "before, words",
    [
        ("sys.version_info = (3, 9, 6)", "error: Python 3.9 is too old, 3.10 to 3.13 are right"),
        ("import bonsai.system.startup; import bonsai.nosuch", "Traceback"),  # a mistake of ours
    ],
)
def test_an_old_python_is_one_line_and_our_mistakes_are_not(before, words):
    code = f"import sys; {before}; import bonsai.system.startup"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.startswith(words), done
    assert (done.stderr.count("\n") == 1) == (words != "Traceback")


@pytest.mark.parametrize("path", [*PROGRAMS, "bonsai/system/startup.py", "bonsai/__init__.py"])
def test_an_old_python_reads_as_far_as_the_line(path):
    """No syntax that Python 3.9 lacks, or it would end in a SyntaxError before it says a word."""
    ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 9))


@needs_posix
@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_at_any_moment_of_a_real_start(workplace, tmp_path, moment):
    """With the real libraries, in a program that would train for long."""
    command = [sys.executable, str(ROOT / "train.py"), "--dataset=meta", "--max_iters=100000"]
    command += ["--n_layer=1", "--n_embd=16", "--n_head=1", "--block_size=16", "--device=cpu"]
    process = subprocess.Popen(
        [*command, "--eval_iters=1", "--log_interval=1000", f"--out_dir={tmp_path}"],
        cwd=workplace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")  # before torch is being loaded Python itself may start
    end = time.monotonic() + 60
    while maps.exists() and "libtorch" not in maps.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep((0.0 if maps.exists() else 1.0) + 0.7 * moment)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    lines = stderr.strip().splitlines()
    assert process.returncode == 130, stdout + stderr
    assert len(lines) == 1 and ("interrupted" in stderr or "SIGINT" in stderr), stderr


def started(action: str, code: str, cwd: Path) -> subprocess.CompletedProcess:
    """A program of these lines, started by a shell that does `action` with its streams."""
    (cwd / "program.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport bonsai.system.startup\n"
        f"from bonsai.system.errors import UserError, run\ndef main():\n    {code}\nrun(main)\n"
    )
    command = f"{sys.executable} program.py {action}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=60
    )


@needs_posix
@pytest.mark.parametrize("action", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "code, status",
    [
        ("print('text'); open('kept', 'w').write('whole')", 0),
        ("open('kept', 'w').write('whole'); raise UserError('no such thing')", 1),
        ("open('kept', 'w').write('whole'); raise KeyboardInterrupt", 130),
        ("f = open('kept', 'w'); import os; os.write(2, b'noise'); f.write('whole')", 0),
    ],
)
def test_closed_streams_are_no_traceback(tmp_path, action, code, status):
    """Nor does what is printed land in a file that was opened in their place."""
    done = started(action, code, tmp_path)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert (tmp_path / "kept").read_text() == "whole"


@needs_posix
@pytest.mark.parametrize(
    "code", ["print('x' * 9)", "print('x' * 10**6)", "print('x'); sys.exit(0)"]
)
def test_a_reader_that_has_gone_is_no_traceback(tmp_path, code):
    done = started(
        "| true; exit ${PIPESTATUS[0]}", f"import time; time.sleep(.3); {code}", tmp_path
    )
    assert done.returncode == 141 and done.stderr == "", done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path):
    done = started("> /dev/full", "print('text')", tmp_path)
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: the disk is full") and done.stderr.count("\n") == 1, done


@needs_posix
def test_closed_streams_of_every_program(tmp_path):
    """--help, with and without anybody to read it."""

    def helped(program: str, action: str):
        command = f"{sys.executable} {ROOT / program} --help {action}"
        options = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
        return subprocess.run(["bash", "-c", command], timeout=100, **options)

    cases = [("show_tokens.py", ">&-", 0), ("train_tokenizer.py", ">&- 2>&-", 0)]
    cases += [("data/bytes/prepare.py", "| true; exit ${PIPESTATUS[0]}", 141)]
    for program, action, status in cases:
        done = helped(program, action)
        assert done.returncode == status and done.stderr == "", (program, done)
