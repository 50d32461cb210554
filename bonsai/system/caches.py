"""Where what takes long to build is kept for the next process: libraries, graphs, kernels."""

import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bonsai.system.errors import UserError

TORCHS = "TORCHINDUCTOR_CACHE_DIR"  # where torch.compile keeps what it has made
FONTS = "MPLCONFIGDIR"  # and matplotlib its list of fonts
TRITONS = "TRITON_CACHE_DIR"  # and where Triton keeps kernels, of ours and of torch.compile


def cache_folder() -> Path | None:
    """This user's own, ~/.cache/bonsai; where the home has no place for it, one in the system's
    /tmp; None where there can be none at all."""
    return next(own_folders(), None)


def own_folders() -> Iterator[Path]:
    """Those of the above that there can be, the better one first."""
    places = []
    with suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(base / "bonsai")
    with suppress(OSError):  # no /tmp, nor another that can be written to
        places.append(Path(tempfile.gettempdir(), f"bonsai-{os.getuid()}"))
    yield from filter(None, map(own_folder, places))


def own_folder(folder: Path) -> Path | None:
    """The folder, made where it is missing; None where it cannot be this user's alone."""
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
    """Have torch.compile keep what it makes in the user's cache, not in the system's /tmp.

    A later run of the same model then finds it, after a restart of the machine too. Processes that
    run side by side share it under torch's own locks. A home that several kinds of machines share
    has a folder for each: torch does not tell their graphs apart, and takes one's on another. A
    home that cannot be locked (some file systems of networks) is no place for it. Where the
    environment names a folder, that stays. Raises UserError where it cannot be: torch's imports
    would fail.
    """
    if is_named(TORCHS) or os.name != "posix":
        return
    kind = processor() + os.environ.get("ATEN_CPU_CAPABILITY", "")
    for folder in own_folders():
        kept = folder / "torch" / hashlib.sha256(kind.encode()).hexdigest()[:8]
        if can_be_locked(folder) and can_be_written(kept):  # sudo may have made it
            os.environ[TORCHS] = str(kept)
            return


def keep_kernels() -> None:
    """Have Triton keep what it compiles in the user's cache where it cannot do so in the home: it
    would compile nothing. Raises UserError as above."""
    if is_named(TRITONS) or "TRITON_HOME" in os.environ or os.name != "posix":
        return
    with suppress(RuntimeError):  # no home
        if can_be_written(Path.home() / ".triton" / "cache"):
            return
    if folder := cache_folder():
        os.environ[TRITONS] = str(folder / "triton")


def keep_fonts() -> None:
    """Before matplotlib is imported: have it keep its list of fonts in the user's cache where it
    cannot do so in the home. It would say so, in two lines, and make the list in each run."""
    if FONTS in os.environ or not sys.platform.startswith("linux"):
        return
    with suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        if can_be_written(base / "matplotlib"):
            return
    if folder := cache_folder():
        os.environ[FONTS] = str(folder / "matplotlib")


def is_named(variable: str) -> bool:
    """Whether the environment names a folder. Raises UserError where nothing can be kept there."""
    if (folder := os.environ.get(variable)) is None:
        return False
    problem = "cannot be written to"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        problem = f"cannot be a folder ({e.strerror})"
    else:
        if can_be_written(Path(folder)):
            return True
    raise UserError(f"{variable}={folder} {problem}: unset it, or name another")


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, or it in the nearest one above it that is there."""
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
