"""bonsai/runs/lock.py: one run per folder, and nobody is kept out by a run that has ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.programs import ROOT, environment

from bonsai.files import access
from bonsai.runs import lock
from bonsai.runs.lock import RunLock, boot
from bonsai.runs.names import LOCK
from bonsai.system.errors import UserError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 1.0)


def held(folder: Path) -> RunLock:
    mine = RunLock(folder, say=lambda line: None)
    mine.acquire()
    return mine


def written_by_another(folder: Path, **changes) -> None:
    """A lock file as another machine leaves it."""
    who = {"pid": 4711, "host": "elsewhere", "boot": "x", "since": "yesterday", "token": "t"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).write_text(json.dumps({**who, **changes}))


def test_the_second_is_told_of_the_first(tmp_path):
    with held(tmp_path) as first:
        with pytest.raises(UserError) as e:
            held(tmp_path)
        assert "\n" not in str(e.value) and "out_dir" in str(e.value)
        for part in (str(tmp_path), f"process {os.getpid()}", first.me["host"], first.me["since"]):
            assert part in str(e.value)
        assert not first.check()
    assert not (tmp_path / LOCK).exists()
    held(tmp_path).release()


def test_who_waits_gets_it_once_the_first_has_ended(tmp_path):
    first, said = held(tmp_path), []
    threading.Timer(0.7, first.release).start()
    second = RunLock(tmp_path, say=said.append)
    second.acquire(patience=30)
    second.release()
    assert len(said) == 1 and f"process {os.getpid()}" in said[0]


def test_a_folder_of_which_nothing_came_goes_again(tmp_path):
    out = tmp_path / "a" / "b"
    held(out).release()
    assert not (tmp_path / "a").exists()
    with held(out):
        (out / "kept").touch()
    assert [p.name for p in out.iterdir()] == ["kept"]


@pytest.mark.skipif(access.fcntl is None, reason="no locks of POSIX")
def test_after_kill_9_the_next_one_starts_at_once(tmp_path):
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from pathlib import Path; from bonsai.runs.lock import RunLock\n"
    code += f"RunLock(Path({str(tmp_path)!r})).acquire(); print('held', flush=True); time.sleep(99)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} "):
            held(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        said = []
        mine = RunLock(tmp_path, say=said.append)
        mine.acquire()
        mine.release()
        assert said == []
    finally:
        process.kill()
        process.communicate()


def test_an_old_file_of_another_machine_is_no_lock(tmp_path):
    written_by_another(tmp_path)
    os.utime(tmp_path / LOCK, (time.time() - 60,) * 2)
    said = []
    with RunLock(tmp_path, say=said.append) as mine:
        mine.acquire()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert said == []


def test_one_that_is_not_touched_any_more_is_waited_for(tmp_path):
    """On another host after the first one died: seconds, not for ever."""
    written_by_another(tmp_path)
    said = []
    with RunLock(tmp_path, say=said.append) as mine:
        mine.acquire()
    assert len(said) == 1 and "process 4711 on elsewhere" in said[0]


def test_one_that_another_machine_touches_is_held(tmp_path):
    written_by_another(tmp_path)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 4711 on elsewhere, since yesterday"):
            held(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "lock_file", lambda fd: None)
    first = held(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        held(tmp_path)
    first.release()
    held(tmp_path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", '{"pid": []}', "x" * 5000, "[" * 1999])
def test_a_file_that_is_not_ours(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content.encode("latin-1"))
    held(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_lock_and_is_not_waited_for(tmp_path):
    def others() -> None:
        os.mkfifo(tmp_path / LOCK)
        said.append(lock.owner(tmp_path / LOCK))
        said.append(lock.touched(tmp_path / LOCK) > 0)
        with pytest.raises(UserError, match=r"run\.lock is no file: .*--out_dir"):
            held(tmp_path)
        said.append("refused")
        with pytest.raises(UserError, match="taken over"):
            mine.check()
        said.append("taken over")

    said, mine = [], held(tmp_path)
    (tmp_path / LOCK).unlink()
    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    thread.join(30)
    assert said == [{}, True, "refused", "taken over"]
    mine.release()
    assert (tmp_path / LOCK).is_fifo()


def test_a_folder_that_was_removed_or_taken_over(tmp_path):
    out = tmp_path / "out"
    with held(out) as mine:
        (out / LOCK).unlink()
        assert mine.check() is False and (out / LOCK).exists()  # the lock alone was removed
        (out / LOCK).unlink()
        out.rmdir()
        assert mine.check() is True and (out / LOCK).exists()
        written_by_another(out)
        with pytest.raises(UserError, match=r"taken over .*process 4711 on elsewhere"):
            mine.check()
    assert (out / LOCK).exists(), "the lock of the other was removed"


def test_this_start_of_this_machine_has_a_name():
    assert boot() == boot() and (not sys.platform.startswith("linux") or len(boot()) == 36)
