"""What readers give: documents in pieces, how they were asked to read, and what they left out."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT


class Piece(NamedTuple):
    """A document, or a part of one."""

    data: bytes  # UTF-8
    first: bool  # the document begins here
    last: bool  # the document ends here
    position: int  # bytes of its file that have been read so far

    @property
    def whole(self) -> bool:
        return self.first and self.last


class Options(NamedTuple):
    """text_column: field of a .jsonl or .parquet row that holds the text.
    split_on: what stands between the documents of one text file; empty: a file is a document.
    on_error: "skip" leaves out files and rows that cannot be read.
    row_text: makes the text of a whole row instead, such as of a conversation; raises UserError for
        a row that it cannot take. Plain text files have no rows: they are then refused.
    row_fields: those that row_text looks at; of others a .parquet file gives it only the names."""

    text_column: str = "text"
    split_on: str = ""
    on_error: str = "stop"
    row_text: Callable[[dict], str] | None = None
    row_fields: tuple[str, ...] = ()

    @property
    def border(self) -> bytes:
        """split_on in UTF-8, with the line ends that text has after it has been read."""
        return self.split_on.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8")


DEFAULTS = Options()


class Seen:
    """What a user should know of a corpus that was read, such as what was left out. It counts the
    last time that the corpus was read."""

    def __init__(self):
        self.faults: dict[Path, str] = {}  # files that cannot be read, and why
        self.checked: set[Path] = set()  # files that can
        self.restart()

    def restart(self) -> None:
        self.empty = self.rows = self.texts = self.borders = self.marks = 0
        self.first_row = ""

    def left_out_row(self, why: UserError) -> None:
        self.rows += 1
        self.first_row = self.first_row or str(why)

    def left_out(self) -> list[str]:
        """For the end of a program; nothing if all was as usual."""
        said = []
        if self.faults:
            first = next(iter(self.faults.values()))
            said.append(f"left out {_count(len(self.faults), 'file')}: {first}")
        if self.rows:
            said.append(f"left out {_count(self.rows, 'row')}: {self.first_row}")
        if self.empty:
            said.append(f"left out {_count(self.empty, 'empty file')}")
        return said

    def lines(self, options: Options) -> list[str]:
        """What was left out, and what may not have been meant."""
        said = self.left_out()
        if options.split_on and not self.borders:
            kind = "each text file is one document" if self.texts else "there is no text file"
            said.append(f"note: --split_on={options.split_on!r} occurs nowhere: {kind}")
        if self.marks and not options.split_on:
            said.append(
                f"note: {EOT_TEXT} in a text file is text like any other: if it stands between "
                f"documents, give --split_on='{EOT_TEXT}'"
            )
        return said


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
