"""Config files and --key=value become a program's checked settings; standard library only.

A program names its settings at its top, each with a default and a comment on one line, and then
calls `c = configure(globals())`, whose attributes they are: `c.batch_size`. Its user writes

    python train.py config/quickstart.py --batch_size=32 --compile=False

Arguments apply left to right. An argument without leading dashes is a config file: Python that sees
the settings so far, so `max_iters = 2 * warmup_iters` works, and can import modules beside it; or
the config.json of a run, with all its settings. `--key=value` and `--key value` set one setting,
and for booleans also `--key` and `--no-key`. The values that a setting takes are in brackets at the
end of its comment, `[>= 1]` or `[cosine | trapezoid]`; bonsai/system/values.py
describes and checks them. Unlike nanoGPT's configurator, which is executed inside its caller, this
is a module: names, types and values are checked, and a mistake is one line, exit status 2.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import shlex
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from bonsai import ROOT, __version__
from bonsai.system.config_files import names_set_by, parse_file, refuse_idle_code, run_file
from bonsai.system.errors import UserError, fail
from bonsai.system.paths import resolve_path
from bonsai.system.values import (
    BOOL_WORDS,
    COMMAND_LINE,
    SIMPLE,
    Setting,
    did_you_mean,
    shown,
    where_given,
)

PYTHON = "from Python"  # the source of a setting that was an argument of main
# A helper whose name is this similar to a setting's is a misspelling, unless the file also sets
# that setting.
MISSPELT = 0.9
SHARED = ("bias",)  # a field that is among train.py's settings, too, as in nanoGPT


class Config(dict):
    """All settings of a run by name: the program's own, then the fields of the chosen model.

    A dict of plain values whose keys are also attributes: `c.learning_rate`. To save it for a
    reader that accepts only plain classes (torch.load with weights_only=True), save `dict(c)`.

    settings: the type and allowed values of each. defaults: the values without any argument.
    given: the names that a file, a preset or the command line has set; typed: those of the command
    line or from Python. sources: the config files and "command line" in order of use.
    """

    settings: dict[str, Setting]
    defaults: dict[str, Any]
    given: set[str]
    typed: set[str]
    sources: list[str]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no setting {name}") from None

    def diff(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {name: value for name, value in self.items() if value != self.defaults[name]}


def configure(
    namespace: dict[str, Any],
    models: dict[str, type] | None = None,
    argv: Iterable[str] | None = None,
    presets: dict[str, dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    say: Callable[[str], object] | None = None,
    files_of: str = "",
) -> Config:
    """Read the arguments and return all settings of a program. `namespace` is not changed.

    namespace: globals() of the program. Its settings are the bool, int, float and str assigned in
        its source at module level above the call, except `_private` and UPPER_CASE names. An
        annotation names further types that one takes: `compile: bool | str = 'auto'`.
    models: name -> dataclass. The program's setting `model` chooses one, whose fields become
        settings, too. A program's setting with the same name takes precedence; if it has another
        default, that is an error, except for `bias`.
    argv: the arguments, by default the program's own.
    presets: name -> settings. `--preset=NAME` sets all of them, at its place among the arguments.
    settings: values from Python, if there are any, instead of the command line, checked like those
        of a config file.
    say: called with the line of settings if stdout is needed for something else.
    files_of: another program, such as train.py, whose config files are accepted, too; settings in
        them that only that program has are ignored.

    Prints one line with the settings that differ from their defaults (rank 0 only). Exits with
    status 0 after --help and --version, and with 2 on a usage error. Raises UserError for an error
    in `settings`.
    """
    program = _program_settings(namespace)
    models = models or {}
    fields = {name: _fields(model) for name, model in models.items()}
    arguments = _Arguments(program, fields, presets or {})
    arguments.left_out = names_set_by(ROOT / files_of) if files_of else set()
    try:
        if settings:
            arguments.read_settings(settings)
        else:
            arguments.read(list(sys.argv[1:] if argv is None else argv))
        if chosen := arguments.model():
            _check_fields(models[chosen], program)
        config = arguments.config()
    except UserError as e:
        if settings:  # the caller may handle it
            raise
        # of the processes that torchrun has started on a node with this command, one says so
        e.quiet = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK") != "0"
        fail(e, 2)
    if arguments.wants_help:
        print(arguments.help(namespace.get("__doc__")), flush=True)
        sys.exit(0)
    if (os.environ.get("RANK") or "0") == "0":
        (say or partial(print, flush=True))(describe(config))
    return config


def describe(config: Config) -> str:
    """One line: `settings: batch_size=32 dropout=0.2 (config/small.py, command line)`.

    The value of a setting whose name ends in _key is not shown, because others may read logs.
    """
    changes = " ".join(
        f"{name}={'...' if name.endswith('_key') else shown(value)}"
        for name, value in config.diff().items()
    )
    sources = f" ({', '.join(config.sources)})" if config.sources else ""
    return f"settings: {changes or 'all defaults'}{sources}"


def refuse_idle(config: Config, *rules: tuple[object, str, str]) -> None:
    """Raise UserError for a setting that was typed and has no effect in this call.

    rules: a condition under which settings have no effect, their names, and the reason: `(not
    c.hub, "revision keep", "without --hub")`. Default values are accepted, and so are settings in
    a config file, which may be for more than one use.
    """
    for idle, names, why in rules:
        for name in names.split() if idle else ():
            if name in config.typed and config[name] != config.defaults[name]:
                _fail(f"--{name} is without effect {why}: leave it out")


def model_fields(config: dict[str, Any], model: type) -> dict[str, Any]:
    """The settings that are fields of a dataclass, as in `Net(**model_fields(config, Net))`."""
    return {f.name: config[f.name] for f in dataclasses.fields(model) if f.name in config}


def _command() -> str:
    """The program's command for messages: python FILE, or the command of the installed package."""
    name = Path(sys.orig_argv[1]).name if len(sys.orig_argv) > 1 else ""
    return name if name.startswith("bonsai-") else shlex.join(["python", sys.argv[0]])


def _version() -> str:
    """
    >>> _version().split()[0]
    'bonsai'
    """
    import importlib.metadata  # slow

    installed = [f"Python {sys.version.split()[0]}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed.append(f"torch {importlib.metadata.version('torch')}")
    return f"bonsai {__version__} ({', '.join(installed)})"


def _fail(message: str) -> NoReturn:
    raise UserError(message) from None


# --- where settings are declared: the program's source and the models' dataclasses ---


def _program_settings(namespace: dict[str, Any]) -> dict[str, Setting]:
    with tokenize.open(namespace["__file__"]) as file:
        source = file.read()
    settings = {}
    for name, annotation, comment, section in _declarations(source, ast.parse(source).body):
        if name.startswith("_") or name.isupper() or name not in namespace:
            continue
        default = namespace[name]
        hint = eval(annotation, namespace) if annotation else type(default)
        hint = eval(hint, namespace) if isinstance(hint, str) else hint  # an annotation in quotes
        if accepted := _simple_types(hint):
            settings[name] = Setting(name, default, accepted, comment, section)
    return settings


def _fields(model: type) -> dict[str, Setting]:
    """A model's settings: its fields that have a simple type and a default.

    The words that a field takes are in CHOICES of the dataclass's module, if that has them, such as
    the keys of model.py's ACTIVATIONS; else in the field's comment.
    """
    hints = typing.get_type_hints(model)
    settings = {
        field.name: Setting(field.name, field.default, accepted)
        for field in dataclasses.fields(model)
        if field.init and field.default is not dataclasses.MISSING
        if (accepted := _simple_types(hints[field.name]))
    }
    for cls in reversed(model.__mro__[:-1]):  # an inherited field has its comment in its own class
        choices = getattr(sys.modules.get(cls.__module__), "CHOICES", {})
        for name, comment, section in _described(cls):
            if name in settings:
                settings[name].comment, settings[name].section = comment, section
                if name in choices:
                    settings[name].takes_words(choices[name])
    return settings


def _check_fields(model: type, program: dict[str, Setting]) -> None:
    """Raise UserError for a field of a model that would silently have the default of a program's
    setting."""
    for name, default in ((field.name, field.default) for field in dataclasses.fields(model)):
        if name in program and program[name].default != default and name not in SHARED:
            _fail(
                f"{model.__name__} has a field {name}, which is a setting of the program: give the "
                "field another name"
            )


@cache  # Python parses the whole file for it, and models share a class
def _described(cls: type) -> list[tuple[str, str, str]]:
    """Name, comment and section of each field that a class itself defines."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a class from an interactive shell has no source
        return []
    found = _declarations(source, ast.parse(source).body[0].body)
    return [(name, comment, section) for name, _, comment, section in found]


def _simple_types(hint: Any) -> tuple[type, ...]:
    """The types that `hint` allows, bool | str -> (bool, str); () if one of them is not simple."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    accepted = typing.get_args(hint) if is_union else (hint,)
    return accepted if SIMPLE.issuperset(accepted) and hint is not type(None) else ()


def _declarations(source: str, body: list[ast.stmt]) -> Iterator[tuple[str, str | None, str, str]]:
    """Each name assigned above the call of configure: name, annotation, comment, section."""
    lines = source.split("\n")
    beside, above = {}, {}  # line number -> comment at the end of a line, on a line of its own
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and lines[row - 1][:column].strip():
            beside[row] = token.string.lstrip("# ")
        elif token.type == tokenize.COMMENT:
            above[row] = token.string.strip("#-= ")  # "" for a line of dashes
    section = ""
    for statement in body:
        calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
        if any("configure" in (getattr(f, "id", ""), getattr(f, "attr", "")) for f in calls):
            return
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        first, last = statement.lineno, statement.end_lineno
        comment = next((beside[row] for row in range(first, last + 1) if row in beside), "")
        heading = []
        while (first := first - 1) in above:
            heading.insert(0, above[first])
        section = "\n".join(filter(None, heading)) or section
        annotation = getattr(statement, "annotation", None)
        for target in getattr(statement, "targets", None) or [statement.target]:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id, annotation and ast.unparse(annotation), comment, section


# --- arguments: config files and the command line ---


class _Arguments:
    """Reads arguments left to right, then checks them against the settings of the chosen model.

    As `--model` may come last, a field of any model is a valid name until the end.
    """

    def __init__(self, program: dict, models: dict[str, dict[str, Setting]], presets: dict):
        self.program: dict[str, Setting] = program
        self.presets: dict[str, dict[str, Any]] = presets
        self.models = {
            model: {name: field for name, field in fields.items() if name not in program}
            for model, fields in models.items()
        }
        self.given: dict[str, tuple[Any, str]] = {}  # name -> value (or text), source
        self.sources: list[str] = []
        self.left_out: set[str] = set()  # settings of another program, ignored in config files
        self.wants_help = False

    def read(self, rest: list[str]) -> None:
        while rest:
            argument = rest.pop(0)
            if argument in ("-h", "-help", "--help"):
                self.wants_help = True
            elif argument in ("-v", "-V", "-version", "--version"):
                print(_version(), flush=True)
                sys.exit(0)
            elif argument.startswith("--"):
                self.read_option(argument, rest)
            else:
                self.read_file(argument)

    def read_option(self, argument: str, rest: list[str]) -> None:
        """Read one `--key...`, and its value if that is the next word, the first of `rest`."""
        key, equals, text = argument[2:].partition("=")
        name, known = key.replace("-", "_"), self.known()
        setting, negated = known.get(name), known.get(name.removeprefix("no_"))
        if name == "preset" and self.presets:
            return self.read_preset(text if equals or not rest else rest.pop(0))
        if setting is None and negated is not None and bool in negated.types and not equals:
            name, text = negated.name, "False"
        elif setting is None:
            if (file := text if equals else "".join(rest[:1])).endswith(".py"):
                _fail(f"unknown setting --{key}: a config file is given by itself, as {file}")
            hint = did_you_mean(name, known, "--")
            _fail(f"unknown setting --{key}{hint} ({_command()} --help lists all)")
        elif not equals and bool in setting.types:
            words = (*BOOL_WORDS, *setting.words)
            text = rest.pop(0) if rest and rest[0].lower() in words else "True"
        elif not equals and (not rest or rest[0].startswith("--")):
            _fail(f"--{key} needs a value, for example {setting.assignment()}")
        elif not equals:
            text = rest.pop(0)
        self.give(name, text, COMMAND_LINE)

    def read_preset(self, name: str) -> None:
        if name not in self.presets:
            _fail(f"--preset={name} is not one of {', '.join(self.presets)}")
        for key, value in self.presets[name].items():
            self.give(key, value, f"preset {name}")

    def read_settings(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if name not in self.known():
                _fail(f"unknown setting {name}{did_you_mean(name, self.known())}")
            self.give(name, value, PYTHON)

    def read_file(self, argument: str) -> None:
        """Read the settings that a config file binds; other names must be helpers."""
        path, known = resolve_path(argument), self.known()
        if not path.is_file():
            _fail(_no_such_file(argument, known))
        if path.suffix == ".json":
            return self.read_run(path, argument)
        tree = parse_file(path, argument)
        refuse_idle_code(tree, argument, known)
        bound = run_file(path, argument, tree, self.values())
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        # A name can be read only after it is bound: one that the file reads anywhere is a helper.
        helpers = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        unset = known.keys() - bound.keys()
        for name, value in bound.items():
            is_code = callable(value) or isinstance(value, types.ModuleType)
            if name in known:
                self.give(name, value, argument)
            elif name.startswith("_") or name in self.left_out or is_code:
                continue
            elif name not in helpers or difflib.get_close_matches(name, unset, cutoff=MISSPELT):
                lines = [node.lineno for node in names if node.id == name]
                where = f"{argument}:{min(lines)}" if lines else argument
                hint = did_you_mean(name, known)
                _fail(f"{where}: unknown setting {name}{hint} (a helper's name may start with _)")

    def read_run(self, path: Path, argument: str) -> None:
        """Read the config.json that a run has written: all its settings, to make it again."""
        from bonsai.files.jsonfile import read_json_object  # few commands name such a file

        settings, known = read_json_object(path), self.known()
        for name, value in settings.items():
            if name not in known and name not in self.left_out:
                _fail(f"{argument}: unknown setting {name}{did_you_mean(name, known)}")
            # a default is given only where something else would take its place: a file before this
            # one, or the depth. Else a line would say of many of them that they are without effect
            unlike = name in known and value != known[name].default
            if unlike or (name in known and (name in self.given or settings.get("depth"))):
                self.give(name, value, argument)

    def give(self, name: str, value: Any, source: str) -> None:
        self.given[name] = (value, source)
        if source not in self.sources:
            self.sources.append(source)

    def model(self) -> str | None:
        """The model chosen so far; None if the program has no models."""
        if not self.models:
            return None
        if "model" not in self.program:
            return next(iter(self.models))
        setting = self.program["model"]
        given = self.given.get("model")
        chosen = self.value(setting, *given) if given else setting.default
        if chosen not in self.models:
            _fail(f"unknown model {chosen!r}; choose one of {', '.join(self.models)}")
        return chosen

    def settings(self) -> dict[str, Setting]:
        """The settings under the model chosen so far."""
        return self.program | self.models.get(self.model(), {})

    def known(self) -> dict[str, Setting]:
        """All valid names. A name that several models have means the chosen model's setting."""
        tables = [*self.models.values(), self.settings()]
        return {name: setting for table in tables for name, setting in table.items()}

    def values(self) -> dict[str, Any]:
        """The current values of all settings, defaults included."""
        known = self.known()
        defaults = {name: setting.default for name, setting in self.settings().items()}
        return defaults | {
            name: self.value(known[name], *given) for name, given in self.given.items()
        }

    @staticmethod
    def value(setting: Setting, raw: Any, source: str) -> Any:
        try:
            return setting.read(raw, source)
        except ValueError as e:
            _fail(str(e))

    def config(self) -> Config:
        settings = self.settings()
        for name, (_, source) in self.given.items():
            if name not in settings:
                owners = [model for model, fields in self.models.items() if name in fields]
                _fail(
                    f"{where_given(name, source)} is a setting of model {' or '.join(owners)}, "
                    f"not of {self.model()}; leave it out or add "
                    f"{' or '.join(f'--model={owner}' for owner in owners)}"
                )
        config = Config(self.values())
        config.settings = settings
        config.defaults = {name: setting.default for name, setting in settings.items()}
        config.given, config.sources = set(self.given), self.sources
        typed = (
            name for name, (_, source) in self.given.items() if source in (COMMAND_LINE, PYTHON)
        )
        config.typed = set(typed)
        return config

    def help(self, doc: str | None) -> str:
        """The text of --help: the program's docstring, then all settings by section."""
        program = _command()
        usage = f"usage: {program} [config/FILE.py ...] [--KEY=VALUE ...]\n"
        usage += f"       {program} --help | --version"
        parts = [*([inspect.cleandoc(doc)] if doc else []), usage, *_sections(self.program)]
        if model := self.model():
            others = [f"--model={name} --help" for name in self.models if name != model]
            see_also = f" (others: {', '.join(others)})" if others else ""
            parts += [f"Model {model}{see_also}", *_sections(self.models[model])]
        if self.presets:
            parts.append(f"Models by name\n  --preset={'|'.join(self.presets)}")
        return "\n\n".join(parts)


def _sections(settings: dict[str, Setting]) -> list[str]:
    """One block of text per section: its title, then lines of `--name=default  comment`."""
    blocks: dict[str, list[str]] = {}
    for s in settings.values():
        line = f"  {f'--{s.name}={shown(s.default)}':<34}  {s.comment}".rstrip()
        blocks.setdefault(s.section, [s.section] if s.section else []).append(line)
    return ["\n".join(lines) for lines in blocks.values()]


def _no_such_file(argument: str, known: Iterable[str]) -> str:
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if name in known and (argument.startswith("-") or "=" in argument):
        return f"{argument} lacks two dashes in front: --{argument.lstrip('-')}"
    if re.match(r"-?\w[\w-]*=", argument):
        return f"unknown setting {argument}{did_you_mean(name, known, '--')} (--help lists all)"
    if argument.startswith("-"):
        return f"{argument} is not an option: settings are given as --key=value, --help lists them"
    if "out_dir" in known and any(Path(argument).glob("*.pt")):
        given = shlex.quote(f"--out_dir={argument}")
        return f"{argument} is not a config file but a run's folder: give {given}"
    files = {
        path.stem: f"config/{path.name}"
        for folder in (ROOT, Path())
        for path in sorted((folder / "config").glob("*.py"))
    }
    near = difflib.get_close_matches(Path(argument).stem, files, n=2)
    if near:
        return f"no config file {argument}; did you mean {' or '.join(files[n] for n in near)}?"
    there = f"config/ has {', '.join(files.values())}; " if files else ""
    return f"no config file {argument}; {there}values are given as --key=value"
