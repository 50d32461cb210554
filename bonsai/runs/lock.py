"""One run per folder: the file run.lock names its owner, and a lock on it tells whether it lives.

The owner holds a lock of the operating system (flock) on the file. It ends with the process,
however that ends: on one machine a run that was killed hinders nobody. Another machine that shares
the folder may know nothing of that lock. So the owner also touches the file every few seconds, and
a process on another machine waits to see whether that continues.
"""

import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from bonsai.files.access import lock_file
from bonsai.files.atomic import temporary
from bonsai.runs.names import LOCK
from bonsai.system.errors import UserError, cannot_write_into

BEAT = 5.0  # seconds between two touches of the file
STALE = 30.0  # seconds without a touch after which the owner counts as gone
FIELDS = ("pid", "host", "boot", "since", "token")


class RunLock:
    """Holds a run's folder from `acquire` to `release`; makes the folder if it is not there."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        """say: called with a line if we wait for another process."""
        self.folder, self.path, self.say = folder, folder / LOCK, say
        self.fd, self.made, self.done = None, [], threading.Event()
        self.me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot": boot(),
            "since": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "token": secrets.token_hex(8),
        }

    def acquire(self, patience: float = 0.0) -> None:
        """Take the folder. If another process holds it, raise UserError, which names that process.

        patience: seconds to wait for it to end.
        """
        deadline, said_so = time.monotonic() + patience, False
        while not self._try():
            other = describe_owner(owner(self.path))
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{self.folder} is the folder of a run that goes on ({other}): stop that one "
                    "first, or set another --out_dir"
                )
            if not said_so:
                self.say(f"waiting for {other}, whose run in {self.folder} goes on")
            said_so = True
            time.sleep(0.5)
        self.done = threading.Event()
        threading.Thread(target=self._beat, args=(self.done,), daemon=True).start()

    def _try(self) -> bool:
        """Try to take the folder; returns whether it is ours now. Raises UserError if we cannot
        write there."""
        try:
            self.made += [p for p in (self.folder, *self.folder.parents) if not p.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
                if not stat.S_ISREG(os.fstat(fd).st_mode):  # reading a pipe would wait for ever
                    os.close(fd)
                    raise UserError(f"{self.path} is no file: remove it, or set another --out_dir")
                locked = lock_file(fd)
                if same_file(fd, self.path):
                    break
                os.close(fd)  # its owner has just removed it
            if locked is False or (self._is_foreign(locked) and self._is_alive()):
                os.close(fd)
                return False
            self.fd = fd
            os.ftruncate(fd, 0)
            os.write(fd, json.dumps(self.me).encode())
            return True
        except OSError as e:
            self.release(ours=self.fd is not None)
            raise UserError(cannot_write_into(self.folder, e)) from None

    def _is_foreign(self, locked: bool | None) -> bool:
        """Whether the system's lock says nothing about the owner that the file names."""
        other, here = owner(self.path), self.me["boot"] or self.me["host"]
        return bool(other) and (locked is None or (other["boot"] or other["host"]) != here)

    def _is_alive(self) -> bool:
        """Whether the file's owner still touches it; measured by the file system's clock."""
        first = touched(self.path)
        rest = STALE - (clock(self.folder) - first)
        if rest <= 0:
            return False
        self.say(
            f"waiting up to {rest:.0f} s to see whether {describe_owner(owner(self.path))} goes on"
        )
        end = time.monotonic() + rest
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT / 2))
            if touched(self.path) != first:
                return True
        return False

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with suppress(OSError, TypeError):
                os.utime(self.fd if os.utime in os.supports_fd else self.path)

    def is_held(self) -> bool:
        """Whether the file is still there and names us."""
        with suppress(OSError):
            return same_file(self.fd, self.path) and owner(self.path)["token"] == self.me["token"]
        return False

    def check(self) -> bool:
        """To be called before anything is written. Returns whether the folder was gone and had to
        be made again. Raises UserError if another process has taken it over meanwhile."""
        if self.is_held():
            return False
        if self.path.exists():
            other = describe_owner(owner(self.path))
            raise UserError(f"{self.folder} was taken over by another run ({other}): stopping")
        gone = not self.folder.is_dir()
        self.release()
        self.acquire()
        return gone

    def release(self, ours: bool = False) -> None:
        """Give the folder back. Folders that we made are removed if nothing was put there.

        ours: the file is ours, though it does not say so yet.
        """
        self.done.set()
        if self.fd is None:
            return
        with suppress(OSError):
            if ours or self.is_held():
                self.path.unlink()
        with suppress(OSError):
            os.close(self.fd)
        self.fd = None
        with suppress(OSError):
            for path in self.made:
                path.rmdir()
        self.made = []

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def boot() -> str:
    """An id of this start of this machine; '' if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def same_file(fd: int, path: str | Path) -> bool:
    """Whether a path still leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def clock(folder: Path) -> float:
    """The time of the file system, which may be another machine's."""
    probe = temporary(folder / LOCK)
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def at_once(path: str, flags: int) -> int:
    """An opener that does not wait, should the file have become a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def touched(path: Path) -> float:
    """When the file was last touched. It is opened, as over NFS a plain stat may be out of date."""
    with suppress(FileNotFoundError), open(path, "rb", opener=at_once) as f:
        return os.fstat(f.fileno()).st_mtime
    return 0.0


def owner(path: Path) -> dict[str, object]:
    """What the lock file says about its owner; {} if it is empty, or not one of ours."""
    with suppress(OSError, ValueError, RecursionError), open(path, "rb", opener=at_once) as f:
        content = json.loads(f.read(2000) or b"")
        if isinstance(content, dict):
            return {key: content.get(key) for key in FIELDS}
    return {}


def describe_owner(who: dict[str, object]) -> str:
    """
    >>> describe_owner({"pid": 12, "host": "node1", "since": "2026-11-26 13:00:00 UTC"})
    'process 12 on node1, since 2026-11-26 13:00:00 UTC'
    """
    if not who.get("pid"):
        return "its process does not say who it is"
    return f"process {who['pid']} on {who['host']}, since {who['since']}"
