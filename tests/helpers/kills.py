"""A process that is killed between two calls, as far as one that goes on can show it."""

import contextlib
from collections.abc import Callable, Iterator

import pytest


class Killed(BaseException):
    """No code may catch it: a process that was killed runs none."""


@contextlib.contextmanager
def killed_after(n: int, *functions: tuple[object, str]) -> Iterator[Callable[[], bool]]:
    """From call n + 1 on, none of these (owner, name) is carried out. Yields: was it killed?"""
    calls = 0

    def counted(function):
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls > n:
                raise Killed
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        for owner, name in functions:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield lambda: calls > n
