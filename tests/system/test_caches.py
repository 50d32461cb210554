"""bonsai/system/caches.py: where built things are kept, and when torch is told so."""

import multiprocessing
import os
import re
import stat
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.programs import ROOT

from bonsai.system import caches
from bonsai.system.errors import UserError

PICTURES = [
    path
    for folder in ("bonsai", "benchmarks", "projects")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if re.search(r"^ *(import|from) matplotlib", path.read_text(encoding="utf-8"), re.M)
]

needs_noexec = pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="no noexec here")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a cache of POSIX systems")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache and /tmp, empty, and no folder named; variables are as before at the end."""
    for name in (caches.TORCHS, caches.TRITONS, "TRITON_HOME", caches.FONTS, "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")  # so that monkeypatch knows what to restore
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def without_rights(monkeypatch, *folders: Path) -> None:
    """As for a user who may not write there; the tests' user may be root, who may."""
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) not in folders and may(path, mode)
    )


def in_tmp(home: Path) -> Path:
    return home / "tmp" / f"bonsai-{os.getuid()}"


def test_the_folder_is_this_users_alone(home):
    folder = caches.cache_folder()
    assert folder == home / "bonsai" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert caches.cache_folder() == in_tmp(home)
    assert stat.S_IMODE(in_tmp(home).stat().st_mode) == 0o700
    in_tmp(home).chmod(0o777)
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


KEPT = {caches.TORCHS: caches.keep_compiled_graphs, caches.TRITONS: caches.keep_kernels}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_set_and_cannot_be_is_one_line(home, monkeypatch, name):
    (home / "file").touch()
    for odd in (str(home / "file"), str(home / "file" / "below"), ""):
        monkeypatch.setenv(name, odd)
        with pytest.raises(UserError, match=f"^{name}={odd} cannot be a folder"):
            KEPT[name]()
    (home / "others").mkdir()
    without_rights(monkeypatch, home / "others")
    monkeypatch.setenv(name, str(home / "others"))
    with pytest.raises(UserError, match=f"^{name}=.*others cannot be written to: unset it"):
        KEPT[name]()


ODD = ["others may write", "cannot be written to", "made by another user", "no home", "HOME unset"]


@pytest.mark.parametrize("odd", ODD)
def test_without_a_good_home_there_is_one_in_tmp(home, monkeypatch, odd):
    (home / "bonsai" / "torch").mkdir(parents=True, mode=0o700)
    (home / "bonsai").chmod(0o777 if odd == "others may write" else 0o700)
    if odd == "cannot be written to":
        without_rights(monkeypatch, home / "bonsai")
    elif odd == "made by another user":
        without_rights(monkeypatch, home / "bonsai" / "torch")
    elif odd == "no home":
        (home / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    elif odd == "HOME unset":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    caches.keep_compiled_graphs()
    assert Path(os.environ[caches.TORCHS]).parent == in_tmp(home) / "torch"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("odd", ["cannot be locked", "no folder at all", "no /tmp"])
def test_without_a_good_folder_torch_has_its_own(home, monkeypatch, odd):
    if odd == "cannot be locked":

        def flock(file, how):
            raise OSError("no locks available")

        monkeypatch.setattr("fcntl.flock", flock)
    else:
        (home / "bonsai").touch()
        in_tmp(home).touch()
    if odd == "no /tmp":
        monkeypatch.setattr(tempfile, "gettempdir", no_tmp)
    caches.keep_compiled_graphs()
    assert caches.TORCHS not in os.environ
    assert (caches.cache_folder() is None) == (odd != "cannot be locked")


def no_tmp() -> str:
    raise FileNotFoundError("No usable temporary directory found")


@pytest.mark.parametrize("where", ["home", "nowhere", "TRITON_HOME", "no home"])
def test_kernels_are_kept_where_the_home_has_no_place_for_them(home, monkeypatch, where):
    """Triton writes below the home, and compiles nothing where it cannot."""
    monkeypatch.setattr(Path, "home", no_home if where == "no home" else lambda: home)
    if where in ("nowhere", "TRITON_HOME"):
        (home / ".triton").touch()
    if where == "TRITON_HOME":
        monkeypatch.setenv(where, str(home))
    caches.keep_kernels()
    elsewhere = where in ("nowhere", "no home")
    want = str(home / "bonsai" / "triton") if elsewhere else None
    assert os.environ.get(caches.TRITONS) == want


def without_code(monkeypatch, *folders: Path) -> None:
    """As if these folders were mounted noexec."""

    def statvfs(path):
        mounted = any(Path(path).is_relative_to(folder) for folder in folders)
        return SimpleNamespace(f_flag=os.ST_NOEXEC if mounted else 0)

    monkeypatch.setattr(os, "statvfs", statvfs)


@needs_noexec
def test_code_is_not_kept_where_none_may_be_run(home, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: home / "home")
    (home / "home").mkdir()
    without_code(monkeypatch, home / "home", home / "bonsai")
    caches.keep_compiled_graphs()
    caches.keep_kernels()
    assert caches.cache_folder() == home / "bonsai"  # for what is no code
    assert caches.library_folder() == in_tmp(home)
    assert all(os.environ[name].startswith(str(in_tmp(home))) for name in KEPT)
    without_code(monkeypatch, home)
    assert caches.library_folder() is None


@needs_noexec
@pytest.mark.parametrize("name", KEPT)
def test_a_folder_that_is_named_and_runs_no_code_is_an_error(home, monkeypatch, name):
    monkeypatch.setenv(name, str(home))
    without_code(monkeypatch, home)
    with pytest.raises(UserError, match=rf"{name}=.* \(noexec\): unset it, or name another"):
        KEPT[name]()


@pytest.mark.skipif(sys.platform != "linux", reason="where matplotlib looks on Linux")
@pytest.mark.parametrize("where", ["home", "nowhere", "named", "no home", "XDG_CONFIG_HOME"])
def test_fonts_are_kept_where_the_home_has_no_place_for_them(home, monkeypatch, where):
    monkeypatch.setattr(Path, "home", no_home if where == "no home" else lambda: home)
    if where in ("nowhere", "named", "XDG_CONFIG_HOME"):
        (home / ".config").touch()
    if where == "named":
        monkeypatch.setenv(caches.FONTS, "there")
    if where == "XDG_CONFIG_HOME":
        monkeypatch.setenv(where, str(home / "config"))
    caches.keep_fonts()
    want = {"named": "there", "home": None, "XDG_CONFIG_HOME": None}
    assert os.environ.get(caches.FONTS) == want.get(where, str(home / "bonsai" / "matplotlib"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_whoever_draws_has_asked_for_a_place_for_fonts(path):
    """In the line before matplotlib is first imported."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    imports = [i for i, line in enumerate(lines) if re.match("(import|from) matplotlib", line)]
    assert lines[imports[0] - 1] == "keep_fonts()"


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
