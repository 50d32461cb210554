"""Several processes: what launchers leave in the environment, what must be equal, and the end."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers.programs import environment, run_as_several, torchrun

from bonsai import ROOT
from bonsai.system.errors import UserError
from bonsai.system.processes import (
    LAUNCHED,
    LAUNCHERS,
    SAME,
    end_with_torchrun,
    meeting,
    processes,
    restarts,
    why_lost,
)
from bonsai.system.runtime import setup, setup_inference

PLAIN = (0, 0, 1, False)


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, PLAIN),
        (dict(RANK="", LOCAL_RANK="", WORLD_SIZE="", MASTER_ADDR=""), PLAIN),
        (dict(RANK="0"), PLAIN),
        (dict(RANK=" 0 ", WORLD_SIZE="1"), PLAIN),
        (dict(LOCAL_RANK=""), PLAIN),
        (dict(WORLD_SIZE="1", MASTER_PORT="29500"), PLAIN),
        (dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="h", MASTER_PORT="1"), (0, 0, 1, True)),
        (
            dict(RANK="3", LOCAL_RANK="1", WORLD_SIZE="4", MASTER_ADDR="h", MASTER_PORT="1"),
            (3, 1, 4, True),
        ),
        (dict(RANK="zero"), "RANK=zero in the environment is no number"),
        (dict(LOCAL_RANK="-1"), "LOCAL_RANK=-1 in the environment is no number"),
        (dict(WORLD_SIZE="1e9"), "WORLD_SIZE=1e9 in the environment is no number"),
        (dict(MASTER_PORT="x"), "MASTER_PORT=x in the environment is no number"),
        (dict(MASTER_PORT="70000"), "MASTER_PORT=70000 in the environment is no port"),
        (dict(RANK="1"), "has RANK=1, but no WORLD_SIZE: start several processes"),
        (dict(RANK="0", WORLD_SIZE="2"), "WORLD_SIZE=2, but no MASTER_ADDR: start several"),
        (dict(WORLD_SIZE="2"), "environment has WORLD_SIZE=2, but no RANK: start several"),
        (dict(WORLD_SIZE="0"), "environment has WORLD_SIZE=0, but no RANK"),
        (dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_NTASKS="8"), PLAIN),
        (dict(SLURM_STEP_NUM_TASKS="8", WORLD_SIZE="1"), PLAIN),
        (dict(SLURM_STEP_NUM_TASKS="8"), "srun has started 8 processes .* set WORLD_SIZE=1"),
        (dict(OMPI_COMM_WORLD_SIZE="2"), "mpirun has started 2 processes"),
        (dict(PMI_SIZE="2"), "mpirun has started 2 processes"),
    ],
)
def test_what_a_launcher_left_in_the_environment(monkeypatch, env, expected):
    for name in (*LAUNCHED, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            processes()
    else:
        assert processes() == expected
        if not expected[3]:
            assert setup("cpu").world_size == 1  # joins nothing


def test_a_port_that_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"cannot meet .* at 127.0.0.1:{port} .*unset MASTER_"):
            setup("cpu")


def test_a_program_that_waits_for_others_ends_with_torchrun(monkeypatch, capfd):
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="1"):
        end_with_torchrun(os.getppid() + 1, threading.Event(), every=0.01)
    assert capfd.readouterr().err == "error: torchrun has ended\n"
    there = threading.Timer(0.2, (notices := threading.Event()).set)
    there.start()
    end_with_torchrun(os.getppid(), notices, every=0.01)  # it goes on until `notices` is set
    end_with_torchrun(os.getppid() + 1, notices, every=0.01)
    assert capfd.readouterr().err == ""


GLOO = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/"
BUGS = " This is typically caused by a remote worker hanging or bugs in the app"


@pytest.mark.parametrize(
    "count, error, advice",
    [
        ("0", f"{GLOO}pair.cc:152] timed out", "name the network in GLOO_SOCKET_IFNAME"),
        ("1", f"{GLOO}pair.cc:152] timed out", "give torchrun TORCH_DISABLE_SHARE_RDZV"),
        ("1", "another error", None),
    ],
)
def test_what_to_do_where_processes_cannot_meet(monkeypatch, count, error, advice):
    env = dict(MASTER_ADDR="h", MASTER_PORT="1", TORCHELASTIC_RESTART_COUNT=count)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    kind = UserError if advice else RuntimeError
    with pytest.raises(kind, match=advice or error), meeting():
        raise RuntimeError(error)


def test_a_program_of_one_process_does_not_run_as_several(monkeypatch):
    env = dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="one process: start it without torchrun") as e:
        setup_inference("cpu")
    assert e.value.quiet  # the first process on this machine says it


@pytest.mark.parametrize("value, count", [(None, 0), ("", 0), ("0", 0), ("2", 2), ("x", 0)])
def test_restarts(monkeypatch, value, count):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", value)
    assert restarts() == count


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [10.0.0.2]:31463."), "Conn"),
        (
            RuntimeError(f"{GLOO}pair.cc:537] Read error [::1]:2: Connection reset by peer.{BUGS}"),
            "Read error: Connection reset by peer",
        ),
        (
            RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"),
            "Timed out waiting 1800000ms for recv",
        ),
        (dist.DistBackendError("NCCL error in: x.cpp:1, remote process exited"), "NCCL error in"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
        (ValueError("gloomy"), ""),
    ],
)
def test_how_a_lost_connection_is_told_from_other_errors(error, said):
    assert why_lost(error).startswith(said) and bool(why_lost(error)) == bool(said)


# (what process 1 has, what is said of it); process 0 has the first one
AGREEMENTS = [
    ({"settings": {"lr": 1, "seed": 2}, "data": {"a/train": "9 tokens"}, "weights": "ab"}, ""),
    ({"settings": {"lr": 3, "seed": 2}}, "other settings than process 0 (lr=3, not 1): give all"),
    ({"settings": {"lr": 1}}, "other settings than process 0 (seed=None, not 2)"),
    ({"data": {"a/train": "8 tokens"}}, "other data than process 0 (a/train=8 tokens, not 9"),
    ({"weights": "cd"}, "other weights than process 0 (cd, not ab)"),
    ({"code": "0"}, "other code than process 0 (0, not "),
    ({"torch": "1"}, "another torch than process 0 (1, not "),
    ({"number format": "float16"}, "another number format than process 0 (float16, not None)"),
    ({"progress": 4}, "another checkpoint than process 0 (4, not None)"),
]

AGREE = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
cases = {AGREEMENTS!r}
with setup("cpu", "float32", False) as runtime:
    for change, _ in cases:
        try:
            own = change if runtime.rank == 1 else {{}}
            runtime.check_agreement(lambda: {{**cases[0][0], **own}})
            said = "agreed"
        except UserError as e:
            said = str(e)
        os.write(1, (said + "\\n").encode())  # at once: the other process writes there, too
"""


def run_two(tmp_path: Path, code: str, *options: str) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(code)
    command = torchrun(program, *options)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)


def test_what_two_processes_must_have_in_common(tmp_path):
    """Both say the same; and all that SAME names is tried."""
    program = tmp_path / "program.py"
    program.write_text(AGREE)
    done = run_as_several([], tmp_path, program)
    assert done.rc == 0, done
    lines, host = done.stdout.splitlines(), socket.gethostname()
    for _, said in AGREEMENTS:
        wanted = f"process 1 on {host} has {said}" if said else "agreed"
        assert sum(line.startswith(wanted) for line in lines) == 2, (wanted, done)
    assert {name for change, _ in AGREEMENTS for name in change} == set(SAME)


# A program of two processes; what one of them, or both, do while the other waits for it
ENDS = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import setup
def end():
    with setup("cpu", "float32", False) as runtime:
        if runtime.rank == 1 or BOTH:
            raise ERROR
        runtime.sum(torch.zeros(1))
run(end)
"""
LOST = "the connection to the other processes broke"


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's report has other words")
@pytest.mark.parametrize(
    "error, tracebacks, both", [("UserError('no luck')", 0, True), ("KeyError('k')", 1, False)]
)
def test_an_error_is_said_once(tmp_path, error, tracebacks, both):
    """Whether one process has it or all; and torchrun's report names it as the cause."""
    code = ENDS.replace("BOTH", str(both)).replace("ERROR", error)
    done = run_two(tmp_path, code)
    said, report = done.stderr.split("FAILED", 1)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    own = [line for line in lines if line == "error: no luck"]
    lost = [line for line in lines if line.startswith(f"error: {LOST}")]
    assert (done.returncode != 0 and lines == own + lost) or lines == lost + own, done
    assert len(own) == 1 - tracebacks and len(lost) <= 1 - both, done
    raised = [line for line in said.splitlines() if re.match(r"\[rank\d\]: KeyError", line)]
    assert len(raised) == tracebacks, done
    cause = report.split("Root Cause")[1]
    assert ("traceback : no luck" if not tracebacks else "traceback : KeyError: 'k'") in cause, done
