"""Where things that take long to build are kept for later processes: libraries, graphs, kernels."""

import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bonsai.system.errors import UserError, runs_no_code

TORCHS = "TORCHINDUCTOR_CACHE_DIR"  # names the folder of torch.compile's compiled code
NOEXEC = "is on a file system from which no code may be run (noexec)"
FONTS = "MPLCONFIGDIR"  # that of matplotlib's list of fonts
TRITONS = "TRITON_CACHE_DIR"  # that of Triton's kernels, ours and torch.compile's


def cache_folder() -> Path | None:
    """This user's cache: ~/.cache/bonsai or, if that cannot be used, a folder in the system's /tmp;
    None if neither can be used."""
    return next(own_folders(), None)


def library_folder() -> Path | None:
    """As cache_folder, for what is loaded as code."""
    return next((folder for folder in own_folders() if not runs_no_code(folder)), None)


def with_temporary(folder: Path) -> dict[str, str]:
    """The environment of a program that keeps its temporary files in this folder."""
    return {**os.environ, "TMPDIR": str(folder)}


def own_folders() -> Iterator[Path]:
    """Those of the folders above that can be used, the better one first."""
    places = []
    with suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(base / "bonsai")
    with suppress(OSError):  # there is no temporary folder that can be written to
        places.append(Path(tempfile.gettempdir(), f"bonsai-{os.getuid()}"))
    yield from filter(None, map(own_folder, places))


def own_folder(folder: Path) -> Path | None:
    """The folder, made if it is missing; None if others own it or may write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
    except OSError:  # a read-only one, or a file
        return None
    others_may_write = about.st_mode & 0o022
    is_ours = about.st_uid == os.getuid() and not others_may_write
    return folder if is_ours and os.access(folder, os.W_OK) else None


def processor() -> str:
    """The processor's name and instruction sets, as the system has them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        return "\n".join(re.findall(r"^(?:model name|flags|Features|CPU part).*$", lines, re.M))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.version()}"


def keep_compiled_graphs() -> None:
    """Have torch.compile keep its compiled code in the user's cache, not in the system's /tmp.

    Then later runs of the same model find it, even after the machine was restarted. Processes that
    run side by side share it under torch's own locks. Each kind of machine has its own folder,
    because several may share a home, and torch would run one machine's code on another. A home on
    which files cannot be locked (on some network file systems), or whose files may not be run
    (noexec), is not used. If the environment names a folder, that stays; UserError if it cannot be
    used, as torch's imports would fail.
    """
    if is_named(TORCHS) or os.name != "posix":
        return
    kind = processor() + os.environ.get("ATEN_CPU_CAPABILITY", "")
    for folder in own_folders():
        kept = folder / "torch" / hashlib.sha256(kind.encode()).hexdigest()[:8]
        usable = can_be_locked(folder) and not runs_no_code(folder)
        if usable and can_be_written(kept):  # sudo may have made it
            os.environ[TORCHS] = str(kept)
            return


def keep_kernels() -> None:
    """Have Triton keep its kernels in the user's cache if it cannot use the home for them; without
    a place it compiles nothing. Raises UserError as above."""
    if is_named(TRITONS) or "TRITON_HOME" in os.environ or os.name != "posix":
        return
    with suppress(RuntimeError):  # no home
        kept = Path.home() / ".triton" / "cache"
        if can_be_written(kept) and not runs_no_code(kept):
            return
    if folder := library_folder():
        os.environ[TRITONS] = str(folder / "triton")


def keep_fonts() -> None:
    """To be called before matplotlib is imported: have it keep its list of fonts in the user's
    cache if it cannot write to the home. Else it says so in two lines, and makes the list in each
    run."""
    if FONTS in os.environ or not sys.platform.startswith("linux"):
        return
    with suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        if can_be_written(base / "matplotlib"):
            return
    if folder := cache_folder():
        os.environ[FONTS] = str(folder / "matplotlib")


def is_named(variable: str) -> bool:
    """Whether the environment names a folder. Raises UserError if that cannot be used."""
    if (folder := os.environ.get(variable)) is None:
        return False
    problem = "cannot be written to"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        problem = f"cannot be a folder ({e.strerror})"
    else:
        if can_be_written(Path(folder)):
            if not runs_no_code(folder):
                return True
            problem = NOEXEC
    raise UserError(f"{variable}={folder} {problem}: unset it, or name another")


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder or, if it is not there, the folder can be made."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def can_be_locked(folder: Path) -> bool:
    import fcntl  # not on Windows

    try:
        with open(folder / "lock", "ab") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
