"""bonsai/files/atomic.py: a file is there whole or not at all, and what failed leaves nothing."""

import os
import signal
import time

import pytest
from helpers.lost_signals import handled_as_in, in_a_bare_except

from bonsai.files.atomic import (
    UNFINISHED,
    is_stream,
    link_or_copy,
    put_if_free,
    replace_text,
    temporary,
    whole_file,
    whole_folder,
)
from bonsai.system import errors
from bonsai.system.errors import ENDS, end_at_once, end_by_interrupt


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with whole_file(path) as f:
        f.write(b"after")
        f.flush()
        assert path.read_text() == "before"
        beside = [p.name for p in tmp_path.iterdir() if p != path]
        assert len(beside) == 1 and UNFINISHED.fullmatch(beside[0])["name"] == "a.txt"
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a").write_text("before")
    with pytest.raises(error), whole_file(tmp_path / "a") as f:
        f.write(b"half")
        raise error
    assert (tmp_path / "a").read_text() == "before" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")
@pytest.mark.parametrize("block", [whole_file, whole_folder])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_a_program_leaves_nothing(tmp_path, capfd, block, name):
    number = getattr(signal, name)
    before = signal.signal(number, end_at_once)
    try:
        with pytest.raises(SystemExit) as e, block(tmp_path / "a"):
            assert len(os.listdir(tmp_path)) == 1
            os.kill(os.getpid(), number)
            time.sleep(60)  # until it has come
        assert e.value.code == 128 + number and os.listdir(tmp_path) == []
        assert signal.getsignal(number) is end_at_once
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err == f"error: {ENDS[number]}\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")
@pytest.mark.parametrize("block", [whole_file, whole_folder])
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_that_got_lost_leaves_nothing(tmp_path, block, number):
    """Within, a library has swallowed what it raised. Nothing later ends by it once more."""
    with handled_as_in(end_by_interrupt):
        if number != signal.SIGINT:
            signal.signal(number, end_at_once)
        with pytest.raises((SystemExit, KeyboardInterrupt)), block(tmp_path / "a"):
            in_a_bare_except(number)
        assert os.listdir(tmp_path) == []
        assert errors.told == (number if number == signal.SIGINT else 0)


def test_a_handler_of_another_kind_stays(tmp_path):
    """A run that saves first, and what is ignored."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with whole_folder(tmp_path / "a") as folder, whole_file(folder / "b") as f:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            f.write(b"x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "a" / "b").read_bytes() == b"x"


def test_a_place_that_cannot_be_taken_leaves_nothing(tmp_path):
    def fail(source, target):
        raise PermissionError

    with pytest.raises(PermissionError), whole_file(tmp_path / "a", place=fail) as f:
        f.write(b"x")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "nowhere" / "a", "x")


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("flushed"))
    with whole_file(tmp_path / "a", place=lambda *_: calls.append("placed")) as f:
        f.write(b"x")
    assert calls == ["flushed", "placed"]


def test_two_writers_have_names_of_their_own(tmp_path):
    names = {temporary(tmp_path / "a").name for _ in range(100)}
    assert len(names) == 100 and all(UNFINISHED.fullmatch(name) for name in names)
    assert not UNFINISHED.fullmatch("a.tmp") and not UNFINISHED.fullmatch("ckpt.pt")


def test_text_is_utf8_with_its_own_line_ends(tmp_path):
    replace_text(tmp_path / "a", "é\r\n")
    assert (tmp_path / "a").read_bytes() == "é\r\n".encode()


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_what_it_had(tmp_path, monkeypatch, links):
    def refuse(*args):
        raise OSError

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    first, second = tmp_path / "first", tmp_path / "second"
    replace_text(first, "1")
    link_or_copy(first, second)
    replace_text(first, "2")
    assert (first.read_text(), second.read_text()) == ("2", "1")


# ---- folders ----


def test_a_folder_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "a"
    with whole_folder(path) as folder:
        replace_text(folder / "x", "1")
        assert not path.exists() and UNFINISHED.fullmatch(folder.name)["name"] == "a"
    assert os.listdir(path) == ["x"] and os.listdir(path.parent) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "a") as folder:
        replace_text(folder / "x", "1")
        raise error
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_what_is_there_is_not_replaced_by_a_folder(tmp_path, what):
    path = tmp_path / "a"
    if what == "folder":
        path.mkdir()
    elif what == "file":
        path.write_text("1")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError), whole_folder(path):
        raise AssertionError("the block is not entered")
    assert os.listdir(tmp_path) == ["a"]


def test_another_who_was_faster_keeps_his_folder(tmp_path):
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as folder:
        replace_text(folder / "x", "1")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "his").write_text("2")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["his"]


@pytest.mark.parametrize("links", [True, False])
def test_another_who_was_faster_keeps_his_file(tmp_path, monkeypatch, links):
    def none(source, target):
        raise PermissionError(1, "Operation not permitted")

    if not links:  # a file system that has none
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "a"
    with whole_file(path, place=put_if_free) as f:
        f.write(b"first")
    with pytest.raises(FileExistsError), whole_file(path, place=put_if_free) as f:
        f.write(b"second")
    assert path.read_bytes() == b"first" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_into_and_stays(tmp_path, linked):
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    assert is_stream(path) and not is_stream(tmp_path) and not is_stream(tmp_path / "nothing")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_text(path, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo() and path.is_symlink() == linked
    os.close(reader)
    with pytest.raises(FileExistsError), whole_file(path, place=put_if_free) as f:
        f.write(b"another")
    assert pipe.is_fifo()


def test_what_a_process_has_open_keeps_what_it_has(tmp_path):
    """As /dev/stdout, where a shell has led it into a file."""
    with open(tmp_path / "a", "ab") as f:
        f.write(b"before, ")
        f.flush()
        replace_text(f"/dev/fd/{f.fileno()}", "after")
    assert (tmp_path / "a").read_text() == "before, after" and len(os.listdir(tmp_path)) == 1
