"""bonsai/files/access.py: what a path is, before anything waits for it or fills the memory."""

import errno
import os
import re
import sys

import pytest
from helpers.programs import ROOT, run_command

from bonsai.files.access import (
    exists,
    file_size,
    not_utf8,
    opened,
    read_bytes,
    reading,
    write_whole,
    writing,
)
from bonsai.files.jsonfile import write_json
from bonsai.files.textfile import check_writable
from bonsai.system.errors import UserError


def test_sizes_and_what_has_none(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert file_size(tmp_path / "a") == 3
    with pytest.raises(UserError, match="cannot read the key: it is a folder, not a file"):
        file_size(tmp_path, "the key")
    with pytest.raises(UserError, match="No such file"):
        file_size(tmp_path / "none")
    with pytest.raises(UserError, match="null"):
        file_size("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (file_size, read_bytes):
        with pytest.raises(UserError, match="it is a pipe, not a file"):
            read(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe"), opened(tmp_path / "pipe"):
        pass
    with pytest.raises(UserError, match="a device"):
        read_bytes("/dev/zero")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_the_pipe_of_a_shell_is_read(tmp_path):
    out, into = os.pipe()
    os.write(into, b"12345")
    os.close(into)
    try:
        assert read_bytes(f"/dev/fd/{out}") == b"12345"
    finally:
        os.close(out)


def test_more_than_the_limit_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 9)
    assert len(read_bytes(tmp_path / "a", limit=9)) == 9
    with pytest.raises(UserError, match=r"the prompts from .*a: it has more than 0 MB"):
        read_bytes(tmp_path / "a", limit=8, what="the prompts")


def test_short_memory_while_a_file_is_read_is_one_line(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(UserError, match="memory does not suffice"), opened(tmp_path / "a"):
        raise MemoryError


def test_what_the_system_says_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^cannot read it: Input/output error$"), reading("it"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(UserError, match=r"^cannot write it: Permission denied$"), writing("it"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    full = "the disk is full while writing it: free some space, or write to another disk (--out=x)"
    with pytest.raises(UserError, match=f"^{re.escape(full)}$"), writing("it", " (--out=x)"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_text_and_its_folder_are_made(tmp_path):
    write_whole(tmp_path / "new" / "a.txt", "é")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é".encode()
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "new" / "a.txt" / "b", "")


def test_whether_there_is_such_a_path(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("")
    assert exists(tmp_path) and exists(tmp_path / "a")
    assert not exists(tmp_path / "b") and not exists(tmp_path / "a" / "b")
    with pytest.raises(UserError, match="null"):
        exists("a\0b")

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        exists("a")


def test_an_encoding_that_can_be_told_is_told():
    assert "but UTF-16: save it" in str(not_utf8("a", 0, b"\xff\xfea\0"))
    assert "a is not UTF-8 at byte 7: convert it" in str(not_utf8("a", 7, b"abc"))


def test_a_part_of_a_path_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for part in ("file", "loop"):
        with pytest.raises(UserError, match=rf"cannot write .*{part}.a: a part of its path is no"):
            write_whole(tmp_path / part / "a", "text")
        for write in (lambda path: check_writable(path, "it"), lambda path: write_json(path, {})):
            with pytest.raises(UserError, match=rf"cannot write .*{part}.a: a part of its path is"):
                write(tmp_path / part / "a")


BOUNDED = """
import resource
from bonsai.files.access import bounded

before = resource.getrlimit(resource.RLIMIT_AS)
for size, good in ((64 << 20, True), (64 << 20, False), (1 << 40, True)):
    try:
        with bounded(size):
            taken = bytearray((32 if good else 128) << 20)
        assert good
    except MemoryError:
        assert not good
    assert resource.getrlimit(resource.RLIMIT_AS) == before
taken = bytearray(128 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_a_library_may_take_so_much_and_no_more():
    result = run_command([sys.executable, "-c", BOUNDED], ROOT)
    assert result.rc == 0, result
