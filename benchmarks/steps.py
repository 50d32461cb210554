"""Runs programs of this repository one after another, in the time that a call has.

The output of each is printed as it comes, and saved in FOLDER/NAME.log. For a program that has
succeeded there is a mark, FOLDER/NAME.done beside FOLDER/NAME.words, and it is not run again with
the same arguments, so an interrupted call can be repeated.
"""

import contextlib
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import supervised
from bonsai import ROOT
from bonsai.files.access import lock_file, write_whole
from bonsai.system.errors import UserError, why_not_written

PATIENCE = 10.0  # seconds to wait until the programs of an earlier call have ended


class Steps:
    """The programs of one call, and the time that is left for them.

    folder: for logs and marks. python: runs the programs. about: what their results depend on
    besides their arguments; if it has changed, programs are run again. again: run all again. lock:
    the file descriptor that locks the folder. last: when the call must end, by time.monotonic().
    """

    def __init__(
        self, folder: Path, python: str, about: str, again: bool, lock: int, last: float = math.inf
    ):
        self.folder, self.python, self.about, self.again = folder, python, about, again
        self.lock, self.last, self.ends = lock, last, last

    def begin(self, limit: float) -> None:
        """The following programs may take `limit` seconds together, if the call has them."""
        self.ends = min(self.last, time.monotonic() + limit)

    def left(self) -> float:
        """The seconds that are left."""
        return max(0.0, self.ends - time.monotonic())

    def run(self, name: str, program: str, *words: str) -> bool:
        """Run a program, unless it has succeeded before with the same arguments (except those that
        limit its time). Returns whether it has succeeded. Its files from other arguments are
        removed first."""
        named = [w for w in words if not w.startswith("--minutes=") and w != "--force"]
        what = f"{' '.join([f'{self.about}:', program, *named])}\n"
        mark, done = self.folder / f"{name}.words", self.folder / f"{name}.done"
        if self.again or text_of(mark) != what:
            for kind in ("done", "log", "txt"):
                (self.folder / f"{name}.{kind}").unlink(missing_ok=True)
            write_whole(mark, what)
        if done.exists():
            print(f"== {name}: done before, in {self.folder} (--force repeats it)", flush=True)
            return True
        if not self.measure(name, program, *words):
            return False
        done.touch()
        return True

    def measure(self, name: str, program: str, *words: str) -> bool:
        """Like `run`, but runs the program in any case."""
        seconds = self.left()
        if not seconds:
            print(f"{name}: no time is left: repeat the command to go on", flush=True)
            return False
        seconds -= 5 if seconds > 10 else 0  # the time that ending it may take
        options = dict(cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, bufsize=0)
        options |= dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        options |= dict(pass_fds=[self.lock])  # its processes hold the lock until all have ended
        command = [self.python, program, *words]
        with (
            open(self.folder / f"{name}.log", "wb") as log,
            supervised(seconds, command, **options) as process,
        ):
            for said in said_by(process):
                for file in (log, sys.stdout.buffer):
                    file.write(said)
                    file.flush()
        return process.returncode == 0


def said_by(process: subprocess.Popen) -> Iterator[bytes]:
    """The output of a process, until it ends; its child processes may keep the pipe open longer."""
    while True:
        if select.select([process.stdout], [], [], 0.1)[0]:
            if not (said := process.stdout.read(1 << 16)):
                return
            yield said
        elif process.poll() is not None:
            return


def text_of(path: Path) -> str:
    """The text of a file; '' if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Lock a folder, so that only one call at a time uses it; yields the locked file's descriptor.

    Raises UserError if another call uses it, or if it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        why = f"cannot write into the folder {folder} ({why_not_written(e, folder)})"
        raise UserError(f"{why}: set --out to another") from None
    try:
        last = time.monotonic() + PATIENCE
        while lock_file(fd) is False:
            if time.monotonic() > last:
                hint = "wait for it, or set --out to another"
                raise UserError(f"another call uses {folder}: {hint}")
            time.sleep(0.1)
        yield fd
    finally:
        os.close(fd)
