"""Which libraries are there, of those that are only needed for some things."""

from importlib.util import find_spec


def installed(name: str) -> bool:
    """Whether a library can be imported. A mere folder of its name, such as one with results in the
    working directory, does not count."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
