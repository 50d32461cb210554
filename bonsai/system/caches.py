"""Where what takes long to build is kept for the next process: libraries, and compiled graphs."""

import hashlib
import os
import platform
import re
from pathlib import Path

from bonsai.system.errors import UserError

TORCHS = "TORCHINDUCTOR_CACHE_DIR"  # where torch.compile keeps what it has made


def cache_folder() -> Path | None:
    """This user's own, ~/.cache/bonsai; None where there can be no such folder."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "bonsai"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
    except (OSError, RuntimeError):  # no home, or a read-only one
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
    has a folder for each: torch does not tell their graphs apart, and takes one's on another. Where
    the environment names a folder, or the user's cannot be locked (some file systems of networks),
    all stays as torch has it. Raises UserError where the named one cannot be: torch's imports would
    fail.
    """
    if (named := os.environ.get(TORCHS)) is not None:
        try:
            os.makedirs(named, exist_ok=True)
        except OSError as e:
            raise UserError(
                f"{TORCHS}={named} cannot be a folder ({e.strerror}): unset it, or name another"
            ) from None
    if named is not None or os.name != "posix":
        return
    folder = cache_folder()
    if folder and can_be_locked(folder):
        kind = processor() + os.environ.get("ATEN_CPU_CAPABILITY", "")
        os.environ[TORCHS] = str(folder / "torch" / hashlib.sha256(kind.encode()).hexdigest()[:8])


def can_be_locked(folder: Path) -> bool:
    import fcntl  # not on Windows

    try:
        with open(folder / "lock", "ab") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
