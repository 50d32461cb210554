"""The files that `--input=` names, and all that are below a folder."""

import contextlib
import glob
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

from bonsai.data.readers import READERS
from bonsai.system.errors import UserError, reason
from bonsai.system.paths import split_paths


def find_files(
    spec: str, bases: Sequence[Path] = (Path(),), endings: Sequence[str] | None = None
) -> list[Path]:
    """The files that `--input=` names: a file, a folder (all known files below it), a pattern
    with * ? or [, or several of these between commas. Relative ones are tried from each base.
    `endings`: of further files that are plain text; None: the program has no setting for them.
    Raises UserError for what is not there."""
    if not spec:
        raise UserError("no input: name a file, a folder or a pattern with --input=PATH")
    known = (*READERS, *(endings or ()))
    files: dict[Path, None] = {}  # a set that keeps its order
    for part in split_paths(spec, bases):
        files.update(dict.fromkeys(_find(part, bases, known, endings)))
    return list(files)


def as_endings(text: str) -> tuple[str, ...]:
    """`--endings=.md, py` as (".md", ".py"), for names in small letters."""
    parts = (part.strip().lstrip("*").lower() for part in text.split(","))
    return tuple(part if part[0] == "." else f".{part}" for part in parts if part)


def total_size(files: Iterable[Path]) -> int:
    """Bytes, for a progress bar; what cannot be looked at counts nothing and is said on reading."""
    return sum(file.stat().st_size for file in files if file.is_file())


def walk(folder: str | Path, skipped: Container[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) for a folder and all below it, but for hidden ones.

    Links to folders are followed, after the folders that are really there, and no folder comes
    twice: a link back to where it stands is no circle. skipped: names of folders to leave out.
    Raises UserError for a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        for at, folders, names in os.walk(waiting.pop(0), onerror=_cannot_list):
            status = os.stat(at)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
            paths = [os.path.join(at, name) for name in folders]
            waiting += [path for path in paths if os.path.islink(path)]
            yield at, [name for name in names if name[0] != "."]


def _cannot_list(e: OSError) -> None:
    raise UserError(f"cannot read the folder {e.filename}: {reason(e)}")


def _find(
    part: str, bases: Sequence[Path], known: tuple[str, ...], endings: Sequence[str] | None
) -> list[Path]:
    part = os.path.expanduser(part)
    for path in (base / part for base in bases):
        if path.is_dir():
            if files := files_below(path, known):
                return files
            hint = _as_text(files_below(path, ("",)), endings)
            raise UserError(f"no {', '.join(known)} file in the folder {path}{hint}")
        if path.exists():
            if not path.name.lower().endswith(known):
                hint = _as_text([path], endings)
                if path.suffix == ".json":
                    hint = "; jq -c '.[]' makes .jsonl of a list"
                raise UserError(f"cannot read {path}: known are {', '.join(known)} files{hint}")
            return [path]
    if glob.has_magic(part):
        others: list[Path] = []
        for base in bases:
            matches = [Path(path) for path in glob.glob(str(base / part), recursive=True)]
            files = sorted(f for f in matches if f.name.lower().endswith(known) and f.is_file())
            if files:
                return files
            others += matches
        raise UserError(f"no {', '.join(known)} file matches {part}{_as_text(others, endings)}")
    raise UserError(not_there(part))


def _as_text(files: Iterable[Path], endings: Sequence[str] | None) -> str:
    """How files of other kinds are read, if a program has the setting for them and they look like
    text: `; --endings=.md,.rst reads those as text`, the most frequent endings first."""
    by_ending: dict[str, list[Path]] = {}
    for file in files if endings is not None else ():
        if file.suffix and file.is_file():
            by_ending.setdefault(file.suffix.lower(), []).append(file)
    frequent = sorted(by_ending, key=lambda ending: (-len(by_ending[ending]), ending))
    found = [ending for ending in frequent if _looks_like_text(by_ending[ending][0])][:3]
    return f"; --endings={','.join([*endings, *found])} reads such files as text" if found else ""


def _looks_like_text(file: Path) -> bool:
    with contextlib.suppress(OSError), open(file, "rb") as f:
        return b"\0" not in f.read(4096)
    return False


def not_there(part: str) -> str:
    """What to say of an input that is neither a file nor a folder."""
    hint = ": what the web has, download first" if "://" in part else ""
    return f"no such file or folder: {part}{hint}"


def files_below(folder: Path, known: tuple[str, ...]) -> list[Path]:
    """The files with known endings, in small letters, below a folder and those that are linked into
    it, in the order of their paths' parts; hidden ones are left out."""
    paths = [
        os.path.join(at, name)
        for at, names in walk(folder)
        for name in names
        if name.lower().endswith(known)
    ]
    return [Path(file) for file in sorted(paths, key=lambda file: file.split(os.sep))]
