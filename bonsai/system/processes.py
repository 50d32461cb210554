"""Several processes that work on one model: how they find out that they are several, meet, check
that they are about to do the same, and end."""

import importlib.util
import os
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bonsai.system.errors import UserError, one_line

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun
# other launchers, by the variable in which they say how many processes they have started
LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}


def processes() -> tuple[int, int, int, bool]:
    """RANK, LOCAL_RANK and WORLD_SIZE from the environment, and whether there is a group to join.

    Empty variables, which job scripts leave behind, count as missing. Raises UserError for values
    that no launcher sets, and where one has started several processes that know nothing of each
    other.
    """
    env = {name: os.environ.get(name, "").strip() for name in LAUNCHED}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not re.fullmatch(r"\d{0,9}", env[name], re.ASCII):
            raise UserError(f"{name}={env[name]} in the environment is no number: unset it")
    if int(env["MASTER_PORT"] or 0) > 65535:
        raise UserError(f"MASTER_PORT={env['MASTER_PORT']} in the environment is no port: unset it")
    rank, local_rank = int(env["RANK"] or 0), int(env["LOCAL_RANK"] or 0)
    world_size = int(env["WORLD_SIZE"] or 1)
    missing = [name for name in LAUNCHED if not env[name] and name != "LOCAL_RANK"]
    if rank >= world_size or (missing and world_size > 1):
        named = (f"{name}={env[name]}" for name in ("RANK", "WORLD_SIZE") if env[name])
        lacks = f", but no {missing[0]}" if missing else ""
        raise UserError(
            f"the environment has {' and '.join(named)}{lacks}: start several "
            "processes with torchrun, or unset them"
        )
    for name, launcher in LAUNCHERS.items():
        if not env["WORLD_SIZE"] and os.environ.get(name, "").strip() not in ("", "0", "1"):
            raise UserError(
                f"{launcher} has started {os.environ[name]} processes that know nothing of each "
                "other: docs/distributed.md has commands for one run of all; for a run of each, "
                "set WORLD_SIZE=1"
            )
    return rank, local_rank, world_size, not missing


def restarts() -> int:
    """How often torchrun has started these processes anew (--max-restarts)."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


@contextmanager
def meeting() -> Iterator[None]:
    """A context in which processes meet; UserError if that fails."""
    try:
        yield
    except RuntimeError as e:
        if not (reason := why_lost(e)):
            raise
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        advice = (
            "unset MASTER_ADDR and MASTER_PORT if nothing has started several, or choose another "
            "port"
        )
        if restarts():  # torch's processes find the addresses of those that have ended
            advice = "give torchrun TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or restarts may fail"
        elif not isinstance(e, dist.DistError):
            advice = "name the network in GLOO_SOCKET_IFNAME if there are several"
        raise UserError(
            f"cannot meet the other processes at {place} ({reason:.200}): {advice}"
        ) from None


# ---- whether all are about to do the same ----

# what has to be equal in all processes -> what to call another one, and what to do about it
SAME = {
    "torch": ("another torch", "install the same one everywhere"),
    "code": ("other code", "use the same files of this repository everywhere"),
    "settings": ("other settings", "give all the same command"),
    "number format": ("another number format", "set --dtype"),
    "data": ("other data", "all nodes need the same files"),
    "progress": ("another checkpoint", "all nodes must see the same out_dir"),
    "weights": ("other weights", "all must begin with the same ones, on the same kind of device"),
}

# settings that may differ: where things are on a machine, and what only the first process uses
OF_A_PROCESS = ("out_dir", "init_from", "device", "compile", "backend", "json", "tracker")
OF_A_PROCESS += ("wandb_log", "wandb_project", "wandb_run_name")


def common_settings(c: dict) -> dict:
    """Those that have to be equal in all processes."""
    return {name: value for name, value in c.items() if name not in OF_A_PROCESS}


def check_agreement(group: dist.ProcessGroup | None, about: Callable[[], dict]) -> None:
    """Raise UserError, in all processes, if they are not about to do the same: collective
    operations would mix what does not belong together, without an error, or wait for ever.

    group: one that takes tensors on the host; None: there is one process. about: returns what has
    to be equal, by the keys of SAME; of dicts the message names the keys that differ.
    """
    if group is None:
        return
    mine = {"torch": str(torch.__version__), "code": running_code_checksum(), **about()}
    all_of_them: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_of_them, (socket.gethostname(), mine), group)
    first = all_of_them[0][1]
    for rank, (host, theirs) in enumerate(all_of_them):
        for name, (another, advice) in SAME.items():
            if first.get(name) != theirs.get(name):
                found = difference(theirs.get(name), first.get(name))
                raise UserError(
                    f"process {rank} on {host} has {another} than process 0 ({found}): {advice}"
                )


def difference(there: object, here: object) -> str:
    """
    >>> difference({"seed": 1, "lr": 2}, {"seed": 3, "lr": 2})
    'seed=1, not 3'
    """
    if not isinstance(there, dict) or not isinstance(here, dict):
        return f"{there}, not {here}"
    names = [k for k in {**here, **there} if there.get(k) != here.get(k)]
    told = [f"{k}={there.get(k)!s:.30}, not {here.get(k)!s:.30}" for k in names[:3]]
    return "; ".join(told + ["..."] * (len(names) > 3))


def running_code_checksum() -> str:
    """A checksum of the program that runs, wherever it is, of bonsai/ and of model.py. Unlike
    commit.code_checksum, not of other files in the repository: a node may have some of its own."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    model, program = importlib.util.find_spec("model"), sys.modules.get("__main__")
    files += map(Path, filter(None, (model and model.origin, getattr(program, "__file__", None))))
    checksum = 0
    for path in files:
        with suppress(OSError):
            checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"


def weights_checksum(model: torch.nn.Module) -> str:
    """A checksum of all parameters, from their bits."""
    sums = [p.detach().float().contiguous().view(torch.int32).sum() for p in model.parameters()]
    return f"{zlib.crc32(str(torch.stack(sums).tolist()).encode()):08x}"


# ---- the end ----


def why_lost(e: BaseException) -> str:
    """What torch says if an exception means that another process cannot be reached; else ''."""
    text = one_line(e)
    if isinstance(e, dist.DistError):
        return one_line(str(e).splitlines()[0])[:300]
    if not isinstance(e, RuntimeError) or "gloo/transport" not in text:
        return ""
    # [/.../pair.cc:537] Read error [10.0.0.2]:24964: Connection reset by peer. This is ...
    words = r"\[/\S*\] ?| ?\[[\w.:]*\](:\d+)?|\. This is typically.*"
    return re.sub(words, "", text)[:300]


def first_to_say(what: str) -> bool:
    """Whether no other process has asked the same before: of an error that all have, one speaks."""
    try:  # a key in the store through which they met, which torchrun keeps
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=5))
        return store.add(f"bonsai said {zlib.crc32(what.encode())}", 1) == 1
    except Exception:  # it was kept by a process that has ended, or this torch has no such function
        return True


def end_with_torchrun(agent: int, notices: threading.Event, every: float = 1.0) -> None:
    """End this process when torchrun ends, unless the program watches for that itself (`notices` is
    set). It would wait for the other processes for half an hour, or for ever."""
    while not notices.wait(every):
        if os.getppid() != agent:
            with suppress(OSError):
                os.write(2, b"error: torchrun has ended\n")
            os._exit(1)
