"""The folder in which tests of all programs run them."""

from pathlib import Path

import pytest
from helpers.every_program import make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run of a byte model and a text."""
    folder = tmp_path_factory.mktemp("place")
    make_place(folder)
    return folder
