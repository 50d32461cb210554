"""The programs where Python lacks what it lacks on Windows: modules, functions, signals, /proc.

No more than that: paths, locks and files in use, too, are otherwise there, and no test has seen it.
"""

import builtins
import io
import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.every_program import WORK, start, words_for

from bonsai.engine.cpu import native
from bonsai.files import access
from bonsai.system.devices import memory_in_use

MODULES = "fcntl resource termios tty pty pwd grp readline syslog"
OF_OS = """
    getuid geteuid getgid getpgid getpgrp setsid fork killpg posix_fadvise sched_getaffinity mkfifo
    mknod nice getpriority getloadavg fchmod fchown chown statvfs pread pwrite preadv fdatasync sync
    posix_fallocate register_at_fork O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC SEEK_DATA SEEK_HOLE
"""
OF_SIGNAL = """
    SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGQUIT SIGCHLD SIGTSTP SIGCONT SIGSTOP SIGWINCH
    pthread_sigmask pthread_kill setitimer alarm siginterrupt sigpending sigwait pause
"""
# what is remembered of the engine's C++, of which there is none on Windows
OF_BUILT = [f for f in vars(native).values() if hasattr(f, "cache_clear")]
# serve.py ends by a signal alone
ENDING = [work for work in WORK if work[0] != "serve.py"]


@pytest.fixture
def without_posix(monkeypatch, tmp_path):
    for name in MODULES.split():
        monkeypatch.setitem(sys.modules, name, None)
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names.split():
            monkeypatch.delattr(module, name, raising=False)
    monkeypatch.setattr(access, "fcntl", None)  # imported before
    windows = SimpleNamespace(platform="win32", stderr=sys.stderr)
    monkeypatch.setattr(native, "sys", windows)
    for function in OF_BUILT:
        function.cache_clear()
    plain = io.open

    def opened(file, *args, **options):
        if str(file).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return plain(file, *args, **options)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for function in OF_BUILT:
        function.cache_clear()


@pytest.mark.parametrize("program, words, work", ENDING, ids=[f"{w[0]}-{w[1][0]}" for w in ENDING])
def test_its_work_is_done(
    without_posix, monkeypatch, place, workplace, tmp_path, capsys, program, words, work
):
    words = words_for(words, place, tmp_path / "made")
    assert start(monkeypatch, place, workplace, program, *words) in (None, 0)
    said = capsys.readouterr()
    assert re.search(work, said.out) and "Traceback" not in said.err + said.out


def test_what_the_system_does_not_say(without_posix, monkeypatch, place, workplace, capsys):
    assert memory_in_use(torch.device("cpu")) is None
    (program, words, _) = next(work for work in WORK if work[0] == "bench.py")
    start(monkeypatch, place, workplace, program, *words)
    assert "peak memory       n/a (this system does not say)" in capsys.readouterr().out
