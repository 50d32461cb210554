"""bonsai/system/caches.py: where built things are kept, and when torch is told so."""

import multiprocessing
import os
import stat

import pytest

from bonsai.system import caches
from bonsai.system.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a cache of POSIX systems")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache, empty, and torch's not named; the variable is as before at the end."""
    monkeypatch.setenv(caches.TORCHS, "")  # so that monkeypatch knows what to restore
    monkeypatch.delenv(caches.TORCHS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_folder_is_this_users_alone(home):
    folder = caches.cache_folder()
    assert folder == home / "bonsai" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert caches.cache_folder() is None


def test_torch_keeps_its_graphs_there(home):
    caches.keep_compiled_graphs()
    assert os.path.dirname(os.environ[caches.TORCHS]) == str(home / "bonsai" / "torch")


def test_each_kind_of_machine_has_a_folder_of_graphs(home, monkeypatch):
    """Of a home that several share: by the processor, and by what torch is told of it."""
    folders = []
    for name, told in (("a", ""), ("b", ""), ("b", "avx2"), ("a", "")):
        monkeypatch.delenv(caches.TORCHS, raising=False)
        monkeypatch.setattr(caches, "processor", lambda name=name: name)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", told)
        caches.keep_compiled_graphs()
        folders.append(os.environ[caches.TORCHS])
    assert folders[0] == folders[3] and len({*folders}) == 3


def test_what_is_set_stays(home, monkeypatch):
    elsewhere = str(home / "elsewhere")
    monkeypatch.setenv(caches.TORCHS, elsewhere)
    caches.keep_compiled_graphs()
    assert os.environ[caches.TORCHS] == elsewhere and not (home / "bonsai").exists()


def test_what_is_set_and_cannot_be_is_one_line(home, monkeypatch):
    (home / "file").touch()
    for odd in (str(home / "file"), ""):
        monkeypatch.setenv(caches.TORCHS, odd)
        with pytest.raises(UserError, match=f"^{caches.TORCHS}={odd} cannot be a folder"):
            caches.keep_compiled_graphs()


@pytest.mark.parametrize("odd", ["others may write", "cannot be locked", "no home"])
def test_without_a_good_folder_torch_has_its_own(home, monkeypatch, odd):
    if odd == "others may write":
        (home / "bonsai").mkdir()
        (home / "bonsai").chmod(0o777)
    elif odd == "no home":
        (home / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    else:

        def flock(file, how):
            raise OSError("no locks available")

        monkeypatch.setattr("fcntl.flock", flock)
    caches.keep_compiled_graphs()
    assert caches.TORCHS not in os.environ


def lock_often(folder, failures) -> None:
    failures.put(sum(not caches.can_be_locked(folder) for _ in range(200)))


def test_processes_side_by_side_both_use_it(tmp_path):
    fork = multiprocessing.get_context("fork")
    failures = fork.Queue()
    both = [fork.Process(target=lock_often, args=(tmp_path, failures)) for _ in range(2)]
    for process in both:
        process.start()
    assert [failures.get(timeout=30) for _ in both] == [0, 0]
    for process in both:
        process.join()
