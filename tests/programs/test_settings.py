"""The settings of every program: each says what it takes, and what it does not take is one line."""

import functools
import math
import re
import runpy

import pytest
import torch
from helpers.programs import ROOT

import configurator
import model
from bonsai.engine import ON_FULL
from bonsai.models.spacebyte import BOUNDARIES
from bonsai.models.table import CONFIGS
from bonsai.system import devices
from bonsai.system.errors import UserError
from bonsai.system.values import COMMAND_LINE, RANGE, WORDS, Setting, in_range
from bonsai.training.trackers import TRACKERS

PROGRAMS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] not in (".venv", "tests", "bonsai")
    and re.search(r"\bconfigure\(globals\(\)", path.read_text(encoding="utf-8"))
    and path.name != "configurator.py"
]
PATHS = re.compile(
    r"out|out_dir|init_from|dataset|.*input|.*file|folder|peer|json|html|plot|.*_png|.*_out|prompts|"
    r"choices|ranks|mnist|models|data"
)
NO_PATHS = {("data/fineweb/prepare.py", "folder")}  # of a repository on the hub


@functools.cache
def namespace(program: str) -> dict:
    return runpy.run_path(str(ROOT / program), run_name="not main")


def declared(program: str) -> dict[str, Setting]:
    return configurator._program_settings(dict(namespace(program)))


def fields() -> dict[tuple[str, str], Setting]:
    return {
        (name, field): setting
        for name, config in CONFIGS.items()
        for field, setting in configurator._fields(config).items()
    }


def settings() -> dict[tuple[str, str], Setting]:
    own = {(p, name): setting for p in PROGRAMS for name, setting in declared(p).items()}
    return own | fields()


def test_every_program_is_found():
    assert {"train.py", "serve.py", "data/custom/prepare.py", "benchmarks/bytes.py"} <= {*PROGRAMS}
    assert len(PROGRAMS) > 30


def test_every_number_has_a_range_with_its_default_inside():
    for where, setting in settings().items():
        if {int, float} & set(setting.types):
            assert re.fullmatch(RANGE, setting.takes), f"{where} states no range: {setting.comment}"
            assert in_range(setting.default, setting.range), where


def test_what_a_text_takes_is_understood():
    for where, setting in settings().items():
        if str in setting.types and setting.takes:
            assert setting.kind or re.fullmatch(WORDS, setting.takes), where
        if bool in setting.types and str in setting.types:
            assert setting.takes.endswith(" | on | off") and setting.words, where


def test_every_list_of_numbers_is_declared_as_one():
    """Then a word in it is one line, in every program."""
    for (program, name), setting in settings().items():
        if setting.takes == "list":
            assert not re.fullmatch(r"[\d.,e-]+", setting.default), f"{program}: {name}"


def test_every_path_knows_the_home_folder():
    for where, setting in settings().items():
        if setting.types == (str,) and PATHS.fullmatch(where[1]) and where not in NO_PATHS:
            assert setting.kind in ("path", "paths"), where


def test_the_words_are_those_of_the_code():
    every = settings()
    for where, setting in every.items():
        if where[1] == "dtype":
            assert setting.words == ["auto", *devices.DTYPES], where
    assert every["train.py", "tracker"].words == list(TRACKERS)
    assert sorted(every["sample.py", "on_full"].words) == sorted(ON_FULL)
    assert every["train.py", "lr_schedule"].words == ["cosine", "trapezoid"]
    assert sorted(every["spacebyte", "boundary"].words) == sorted(BOUNDARIES)
    scales = namespace("benchmarks/bytes.py")["SCALES"]
    assert every["benchmarks/bytes.py", "scale"].words == list(scales)


def test_the_comments_of_fields_name_the_choices_of_the_code():
    """Both are for the reader; what counts is the code."""
    comments = {name: comment for name, comment, _ in configurator._described(model.GPTConfig)}
    for name, setting in configurator._fields(model.GPTConfig).items():
        assert setting.comment == comments[name]
        if name in model.CHOICES:
            assert setting.words == [c for c in model.CHOICES[name] if isinstance(c, str)], name
    assert model.CHOICES.keys() <= comments.keys()


def test_an_activation_is_added_by_its_line_in_the_table(capsys, monkeypatch):
    monkeypatch.setitem(model.ACTIVATIONS, "tanh", torch.tanh)
    for name in CONFIGS:
        chosen = configured("train.py", f"--model={name}", "--activation=tanh")
        assert CONFIGS[name](activation=chosen.activation).activation == "tanh"
    with pytest.raises(SystemExit):
        configured("train.py", "--help")
    assert " | swiglu | tanh]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        configured("train.py", "--activation=tan")
    assert "swiglu, tanh; did you mean tanh?" in capsys.readouterr().err


NUMBERS = (-1e18, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 1e18, math.nan, math.inf)


def wrong_values(setting: Setting) -> list[str]:
    """As typed: numbers out of range, a word that is none, a boolean that is neither."""
    if {int, float} & set(setting.types):
        numbers = [n for n in NUMBERS if not in_range(n, setting.range)]
        whole = [n for n in numbers if math.isfinite(n) and n.is_integer()]
        numbers = whole if float not in setting.types else numbers
        return [str(int(n)) if n in whole else str(n) for n in numbers]
    if setting.words or bool in setting.types:
        return ["neither"]
    return []


def configured(program: str, *arguments: str) -> configurator.Config:
    models = CONFIGS if program in ("train.py", "bench.py") else None
    return configurator.configure(dict(namespace(program)), models, arguments)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_taken_is_one_line(program, capsys):
    known = declared(program)
    if program == "train.py":
        known |= {name: s for (owner, name), s in fields().items() if owner == "gpt"}
    argument = ""
    for name, setting in known.items():
        wrong = wrong_values(setting)
        for value in wrong:
            with pytest.raises(ValueError, match=f"^--{name}"):
                setting.read(value, COMMAND_LINE)
        assert setting.fault(setting.default) == ""
        argument = f"--{name}={wrong[0]}" if wrong else argument
    if argument:
        with pytest.raises(SystemExit) as exit:
            configured(program, argument)
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1
        assert err.startswith(f"error: {argument.partition('=')[0]}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_paths_and_lists_of_every_program(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    typed = {"path": "~/r", "paths": "a, b=~/r", "list": "a, b", "escapes": r"\n"}
    typed["numbers"] = "2, 4"
    read = {"path": str(tmp_path / "r"), "paths": f"a,b={tmp_path / 'r'}", "list": "a,b"}
    read |= {"escapes": "\n", "numbers": "2,4"}
    kinds = {name: s.kind for name, s in declared(program).items() if s.kind}
    kinds |= {n: "numbers" for n, s in declared(program).items() if s.takes.startswith("list of")}
    config = configured(program, *(f"--{name}={typed[kind]}" for name, kind in kinds.items()))
    assert {name: config[name] for name in kinds} == {n: read[kind] for n, kind in kinds.items()}
    capsys.readouterr()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version(program, capsys):
    for argument in ("-h", "--version"):
        with pytest.raises(SystemExit) as exit:
            configured(program, argument)
        out = capsys.readouterr().out
        assert exit.value.code == 0 and "Traceback" not in out
        if argument == "-h":
            for name, setting in declared(program).items():
                assert re.search(rf"^  --{name}=", out, re.M), name
                assert setting.takes in out
        else:
            assert out.startswith("bonsai ") and out.count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_second_call_has_the_defaults_again(program, capsys):
    """As in a notebook, where main is called more than once in one process."""
    plain = {name: s for name, s in declared(program).items() if bool in s.types}
    plain |= {n: s for n, s in declared(program).items() if s.types == (int,) or s.kind == "path"}
    other = {
        name: "never-used" if s.kind == "path" else not s.default if bool in s.types else 300
        for name, s in plain.items()
        if s.kind == "path" or bool in s.types or in_range(300, s.range)
    }
    names = dict(namespace(program))
    first = configurator.configure(names, None, [f"--{n}={v}" for n, v in other.items()])
    assert {n: first[n] for n in other} == other and other
    assert configurator.configure(names, None, []).diff() == {}
    assert all(names[n] == plain[n].default for n in other)
    capsys.readouterr()


# ---- settings without effect ----

IDLE = [
    (
        "sample.py",
        dict(prompts="p.jsonl", start="To be"),
        "--start is without effect with --prompts",
    ),
    ("sample.py", dict(prompts="p.jsonl", interactive=True), "--interactive"),
    ("sample.py", dict(prompts="p.jsonl", on_full="stop"), "--on_full"),
    ("sample.py", dict(batch_size=2), "--batch_size is without effect without --prompts"),
    ("sample.py", dict(interactive=True, num_samples=3), "--num_samples"),
    (
        "eval.py",
        dict(choices="q.jsonl", windows=3),
        "--windows is without effect without --dataset",
    ),
    ("eval.py", dict(tasks="piqa", other_tokenizer=True), "--other_tokenizer"),
    ("serve.py", dict(models="a=b", out_dir="c"), "--out_dir is without effect with --models"),
    ("bench.py", dict(gpus=8), "--gpus is without effect without --size"),
    ("bench.py", dict(size="gpt2", json="r.json"), "--json is without effect with --size"),
    ("bench.py", dict(size="gpt2", dtype="float32"), "--dtype is without effect with --size"),
    ("bench.py", dict(real_data=False, dataset="a"), "--dataset is without effect with --real"),
    ("show_tokens.py", dict(html="a.html", ids=True), "--ids is without effect with --html"),
    ("train_tokenizer.py", dict(ranks="a.tiktoken", vocab_size=300), "--vocab_size"),
    ("train_tokenizer.py", dict(ranks="a.tiktoken", html="a.html"), "--html"),
    (
        "train_tokenizer.py",
        dict(type="sentencepiece_bpe", special_tokens="<|a|>"),
        "--special_tokens",
    ),
    ("train_tokenizer.py", dict(curve=False, curve_png="a.png"), "--curve_png"),
    ("train_tokenizer.py", dict(stats=False, curve_png="a.png"), "--curve_png"),
    ("train_tokenizer.py", dict(ranks="a.tiktoken", max_bytes=9), "--max_bytes"),
    ("train_tokenizer.py", dict(curve=False, n_embd=9), "--n_embd is without effect without a"),
    ("data/custom/prepare.py", dict(input="a.txt", name="a", keep=True), "--keep"),
    ("data/fineweb/prepare.py", dict(input="a.txt", revision="b"), "--revision"),
    ("data/openwebtext/prepare.py", dict(input="a.txt", keep=True), "--keep"),
    ("data/multi30k/prepare.py", dict(input="a", url="b"), "--url is without effect with --input"),
    ("data/shakespeare/prepare.py", dict(input="a.txt", url="b"), "--url"),
    ("data/shakespeare_char/prepare.py", dict(input="a.txt", url="b"), "--url"),
    ("data/chat/prepare.py", dict(input="a.jsonl", revision="main2"), "--revision"),
    ("data/custom/prepare.py", dict(hub="a/b", name="a", endings=".md"), "--endings"),
    ("projects/adder/adder.py", dict(symbols=5), "--symbols is without effect with --task=add"),
    ("projects/adder/adder.py", dict(task="sort", digits=3), "--digits"),
    ("projects/image_bytes/image_bytes.py", dict(gray=True), "--gray"),
    ("projects/sound_bytes/sound_bytes.py", dict(source="a", tunes=3), "--tunes"),
    ("projects/translate/translate.py", dict(gpt_steps=3), "--gpt_steps"),
    ("projects/scaling/scaling.py", dict(chinchilla=True, budgets="1,2"), "--budgets"),
]


@pytest.mark.parametrize("program, settings, hint", IDLE, ids=str)
def test_a_setting_that_changes_nothing_is_an_error(program, settings, hint):
    with pytest.raises(UserError) as e:
        namespace(program)["main"](**settings)
    assert str(e.value).startswith("--") and hint in str(e.value)
    assert str(e.value).endswith(": leave it out")
