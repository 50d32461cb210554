"""Python programs started by a process that has the large libraries already: torch alone is seconds
of every start, and half a second of every end. What a program imports of this repository it imports
anew, and what it has loaded Python takes down."""

import atexit
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# read when Python or a library starts, which here is over: such programs get a start of their own
EARLY = ("PYTHON", "OMP", "LD_", "MPL", "ATEN", "ONEDNN", "TORCH", "CUDA", "ARROW", "MALLOC")

CODE = """
import atexit, ctypes, gc, importlib, json, os, runpy, sys

libraries = {}

@atexit.register  # the first one here is the last one there
def keep_libraries():
    # what Python, when it ends, does not find, it does not take down
    for name in libraries:
        sys.modules.pop(name, None)

for name in ("torch", "torch._dynamo", "numpy", "matplotlib.figure", "tiktoken", "regex"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
libraries.update(sys.modules)
for name in ("__main__", "builtins", "sys"):
    del libraries[name]
ctypes.pythonapi.Py_IncRef(ctypes.py_object(libraries))  # or they would go with the last name
gc.collect()
gc.freeze()  # nor does the search for garbage touch their pages, which would copy them
while line := sys.stdin.buffer.raw.readline():
    asked = json.loads(line)
    child = os.fork()
    if child:
        os.write(1, b"%d\\n" % child)
        os.write(1, b"%d\\n" % os.waitpid(child, 0)[1])
        continue
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_WRONLY if number else os.O_RDONLY
        os.dup2(os.open(asked[name], flags), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = asked["argv"]
    if sys.argv[0] == "-m":
        sys.path[0] = os.getcwd()
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()
"""


class Nursery:
    """A process that starts programs, one after the other."""

    def __init__(self, env: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )

    def run(self, request: dict, timeout: float) -> int:
        """The exit status, as subprocess has it. Raises TimeoutExpired."""
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        late = not select.select([self.process.stdout], [], [], timeout)[0]
        if late:
            os.kill(child, signal.SIGKILL)
        status = int(self.process.stdout.readline())
        if late:
            raise subprocess.TimeoutExpired(request["argv"], timeout)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


idle: queue.SimpleQueue[Nursery] = queue.SimpleQueue()


@atexit.register
def close_all() -> None:
    while not idle.empty():
        idle.get().close()


def can_start(command: list[str], env: dict[str, str]) -> bool:
    """Whether it is a script or a module that needs no start of its own."""
    early = [name for name in env if name.startswith(EARLY)]
    script = command[0] == sys.executable and (command[1] == "-m" or command[1].endswith(".py"))
    return sys.platform == "linux" and script and not early


def start(command: list[str], cwd: Path, env: dict[str, str], input: str | None, timeout: float):
    """Run a program to its end: (status, stdout, stderr)."""
    try:
        nursery = idle.get_nowait()
    except queue.Empty:
        nursery = Nursery(env)
    with tempfile.TemporaryDirectory(prefix="program") as folder:
        paths = {name: Path(folder, name) for name in ("stdin", "stdout", "stderr")}
        for name, path in paths.items():
            path.write_text(input or "" if name == "stdin" else "", encoding="utf-8")
        if input is None:
            paths["stdin"] = Path(os.devnull)
        request = {name: str(path) for name, path in paths.items()}
        request |= {"argv": command[1:], "cwd": str(cwd), "env": env}
        try:
            status = nursery.run(request, timeout)
        finally:
            idle.put(nursery)
        said = [paths[name].read_bytes().decode() for name in ("stdout", "stderr")]
    return status, *said
