"""Where documents come from: files, or a data set of the Hugging Face hub.

All functions return `read`, which reads the documents as often as `split_documents` wants to, and
the size of the files in bytes, packed or not.
"""

import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bonsai import ROOT
from bonsai.data.finding import as_endings, find_files, total_size
from bonsai.data.pieces import Options, Piece, Seen
from bonsai.data.readers import read_pieces
from bonsai.system.errors import UserError

Read = Callable[..., Iterable[Piece]]  # takes progress= and heads=, as read_pieces does


def from_settings(c, folder: Path, options: Options, seen: Seen) -> tuple[Read, int]:
    """The documents that a prepare script's settings name. c: has input, hub, revision, files, keep
    and, if the script takes plain text, endings. folder: of the data set. Raises UserError."""
    if c.input and c.hub:
        raise UserError("give --input= or --hub=, not both")
    if c.hub:
        downloads = folder / "downloads"
        return from_hub(c.hub, c.revision, c.files, downloads, c.keep, options, seen)
    return from_files(c.input, c.get("endings"), options, seen)


def from_files(spec: str, endings: str | None, options: Options, seen: Seen) -> tuple[Read, int]:
    """Documents in files. spec, endings: as --input and --endings have them; None: a program
    without that setting."""
    further = None if endings is None else as_endings(endings)
    files = find_files(spec, (Path(), ROOT), further)
    return functools.partial(read_pieces, files, options, seen=seen), total_size(files)


def from_hub(
    repo: str,
    revision: str,
    pattern: str,
    downloads: Path,
    keep: bool,
    options: Options,
    seen: Seen,
) -> tuple[Read, int]:
    """Documents of the hub, whose files are fetched one after another as they are read.

    pattern: of the paths to take; '*': those of the train split, if the paths say so. downloads:
    the folder for the files. keep: else a file goes when it has been read for the last time.
    """
    from bonsai.data.fetch import hub_downloads

    paths, sizes = zip(*_hub_paths(repo, revision, pattern))

    def read(**how) -> Iterator[Piece]:
        again = "progress" not in how  # all but the last reading look at the text only
        local = hub_downloads(repo, revision, paths, downloads, keep or again)
        return read_pieces(local, options, seen=seen, **how)

    return read, sum(sizes)


def _hub_paths(repo: str, revision: str, pattern: str) -> list[tuple[str, int]]:
    """(path, bytes) of the files to take."""
    from bonsai.data.fetch import hub_files

    files = hub_files(repo, revision)
    taken = [(p, n) for p, n in files if fnmatch.fnmatch(p, pattern)]
    if pattern == "*":
        taken = [(p, n) for p, n in files if "train" in p.lower()] or taken
    if not taken:
        raise UserError(f"no file of {repo} matches {pattern}: there are {files[0][0]} and others")
    print(f"{len(taken)} of the {len(files)} files of {repo}, {taken[0][0]} first")
    return taken
