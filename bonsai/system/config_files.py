"""Config files in Python: parsed, checked for what would set nothing, and run; standard library
only."""

import ast
import importlib
import sys
import textwrap
import traceback
from collections import UserDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bonsai.system.errors import UserError

# Modules that config files may use without importing them, because nanoGPT's train.py, which
# executes them, has imported them.
NANOGPT_MODULES = {name: name for name in ("os", "sys", "time", "math", "pickle", "torch")}
NANOGPT_MODULES |= {"np": "numpy"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_set_by(program: Path) -> set[str]:
    """The names that a program assigns at module level."""
    body = ast.parse(program.read_bytes()).body
    plain = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    noted = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in plain + noted if isinstance(target, ast.Name)}


def parse_file(path: Path, name: str) -> ast.Module:
    """The syntax tree of a config file."""
    hint = "" if path.suffix == ".py" else " (arguments without -- are config files, in Python)"
    try:
        source = path.read_bytes()
        if b"\0" not in source:
            return ast.parse(source, name)
    except SyntaxError as e:
        raise UserError(
            f"{name}{f':{e.lineno}' if e.lineno else ''}: {type(e).__name__}: {e.msg}{hint}"
        ) from None
    except Exception as e:
        raise UserError(f"{name}: {type(e).__name__}: {e}") from None
    raise UserError(f"{name} is not UTF-8 text{hint or ': save it as UTF-8'}")


def refuse_idle_code(tree: ast.Module, name: str, known: Iterable[str]) -> None:
    """Raise UserError for code in a config file that Python would run but that has no effect."""

    def refuse(node: ast.AST, what: str) -> None:
        what = textwrap.shorten(what, 60, placeholder=" ...")
        raise UserError(
            f"{name}:{node.lineno}: {what} sets nothing: settings are given as NAME = VALUE"
        )

    nodes = list(ast.walk(tree))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {node.id for node in nodes if _is_name(node, ast.Load)}
    for node in _outside_of_definitions(tree):
        # `max_iters: 5` of YAML, `{"max_iters": 5}` of JSON, `max_iters == 5`, `del max_iters`
        is_idle = isinstance(node, ast.AnnAssign) and node.value is None
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            acts = (ast.Call, ast.NamedExpr)
            is_idle = not any(isinstance(part, acts) for part in ast.walk(node))
        if isinstance(node, ast.Delete):
            is_idle = any(_is_name(part, ast.Del) and part.id in known for part in ast.walk(node))
        if is_idle:
            refuse(node, ast.unparse(node))
    for node in nodes:
        if isinstance(node, DEFINITIONS):
            is_used = node.name in read or node.name.startswith("__") or node.decorator_list
            for assigned in _idle_names(node, bool(is_used)):
                if assigned in known:
                    kind = "class" if isinstance(node, ast.ClassDef) else "function"
                    refuse(node, f"{assigned} in {kind} {node.name}")


def _outside_of_definitions(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those in classes and functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, DEFINITIONS):
            yield node
            yield from _outside_of_definitions(node)


def _idle_names(definition: ast.AST, is_used: bool) -> list[str]:
    """The names that a class or a function assigns without any effect.

    Names in a class that is used can be read as its attributes. A function's local name has an
    effect if the function reads it; a name that it declares as global, if the function is used.
    """
    nodes = list(ast.walk(definition))
    assigned = dict.fromkeys(node.id for node in nodes if _is_name(node, ast.Store))
    if isinstance(definition, ast.ClassDef):
        return [] if is_used else list(assigned)
    effective = {node.id for node in nodes if _is_name(node, ast.Load)}
    outer = {n for node in nodes if isinstance(node, ast.Global) for n in node.names}
    effective = effective | outer if is_used else effective - outer
    return [name for name in assigned if name not in effective]


def _is_name(node: ast.AST, context: type) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, context)


class _Recorder(UserDict):
    """The top-level namespace of a config file: writes to its globals, and notes bound names."""

    def __init__(self, names: dict[str, Any]):
        self.data = names  # not a copy: functions in the file read these globals
        self.bound: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        self.bound.add(name)
        self.data[name] = value


def run_file(path: Path, name: str, tree: ast.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a config file that can read `settings`; return the names that it binds.

    It finds modules beside it, as a program would, but after all others: a config may be named as
    one of them.
    """
    read = {node.id for node in ast.walk(tree) if _is_name(node, ast.Load)}
    needed = [each for each in NANOGPT_MODULES if each in read or "exec" in read]
    modules = {each: importlib.import_module(NANOGPT_MODULES[each]) for each in needed}
    names = {**modules, **settings, "__file__": str(path), "__name__": "config"}
    before, recorder, beside = dict(names), _Recorder(names), str(path.resolve().parent)
    sys.path.append(beside)
    try:
        exec(compile(tree, name, "exec"), names, recorder)
    except (Exception, SystemExit) as e:
        frames = traceback.extract_tb(e.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == name]
        raise UserError(
            f"{name}{f':{lines[-1]}' if lines else ''}: {type(e).__name__}: {e}"
        ) from None
    finally:
        sys.path.remove(beside)  # the first of this name, if the file has added it, too
    for key, value in names.items():  # a function in the file may have bound globals
        if key not in before or value is not before[key]:
            recorder.bound.add(key)
    return {key: value for key, value in names.items() if key in recorder.bound}
