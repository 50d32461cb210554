"""One line for a user's mistake, a traceback for ours.

Code that finds a mistake of the user or of the environment (a missing file, ids outside the
vocabulary, a full disk) raises `UserError` with one line that says what is wrong and what to do.
Every program is started through `run`, which turns that into the line on stderr and exit status 1.
"""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user or of the environment; its message is one line for the terminal."""


def fail(message: object, status: int = 1) -> None:
    """Print one line on stderr and end this process with `status`."""
    sys.stdout.flush()
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def run(main: Callable[[], int | None]) -> None:
    """Call `main` as a program: its return value is the exit status, user errors are one line.

    Exit status: 0 done, 1 user error, 130 interrupted; other exceptions keep their traceback.
    """
    try:
        sys.exit(main())
    except UserError as e:
        fail(e)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        fail("interrupted", 130)
    except BrokenPipeError:  # `| head` closed our stdout: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        fail("out of memory: use a smaller batch_size or a smaller model")
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" while writing {e.filename}" if e.filename else ""
            fail(f"the disk is full{where}: free some space or write elsewhere")
        raise
