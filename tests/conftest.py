"""Fixtures that many tests share, and the --slow option; tests/helpers/ has the rest."""

import getpass
import os
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
# torch does not tell apart what it has compiled for other instructions: NaN came of it
if instructions := os.environ.get("ATEN_CPU_CAPABILITY"):
    name = f"torchinductor_{getpass.getuser()}_{instructions}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), name)))

import pytest
from helpers.tiny_data import KINDS, make_dataset

# A shell starts what it runs in the background with Ctrl-C ignored, nohup with SIGHUP, and programs
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A folder to run programs in, away from the repository; data/ has one data set of each kind.

    Also data/more, a second one with the tokenizer of data/meta. Treat the data as read-only.
    """
    folder = tmp_path_factory.mktemp("workplace")
    for kind in KINDS:
        make_dataset(folder / "data" / kind, kind)
    make_dataset(folder / "data" / "more", "meta", seed=7)
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "out"
