"""The rules of the repository, found by walking it: imports, configs, commands, sizes."""

import ast
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.programs import GOLDEN, ROOT, TINY, Result, environment, load, run_program
from helpers.settings import PROGRAMS, settings

from configurator import Config

PARTS = sorted((ROOT / "bonsai").rglob("*.py"))
FOLDERS = ("bonsai", "benchmarks", "data", "projects", "config")
CODE = sorted([*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))])
# is copied beside a model.py, and imports it from there
COPIED = ROOT / "bonsai" / "models" / "modeling_bonsai.py"
CONFIG_FILES = sorted(p.name for p in (ROOT / "config").glob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- who may import whom ----


def imports(path: Path) -> set[str]:
    """First names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path == COPIED, f"{short(path)}: imports are absolute"
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", CODE, ids=short)
def test_nothing_imports_a_program(path):
    assert not imports(path) & {Path(p).stem for p in PROGRAMS}


@pytest.mark.parametrize("path", PARTS, ids=short)
def test_bonsai_takes_arguments_only(path):
    """Neither the settings of a program, nor the command line, nor the environment."""
    assert "configurator" not in imports(path)
    local = imports(path) & {p.stem for p in ROOT.glob("*.py")}
    assert local <= {"model"}
    read = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    } & {"sys.argv", "os.environ", "os.getenv"}
    allowed = {
        "runtime.py": {"os.environ"},  # torchrun's
        "compiler.py": {"os.environ"},  # which compilers torch.compile will run
        "processes.py": {"os.environ"},  # torchrun's and other launchers'
        "errors.py": {"os.environ"},  # where torchrun looks for the cause of an end
        "caches.py": {"os.environ"},  # where this user keeps them
        "allocator.py": {"os.environ"},  # what is set of malloc stays
        "threads.py": {"os.environ"},  # and of OpenMP
        "provenance.py": {"sys.argv"},  # at the head of logs and tables, to be repeated
    }
    assert read <= allowed.get(path.name, set())


def test_model_needs_torch_alone():
    standard = set(sys.stdlib_module_names)
    assert imports(ROOT / "model.py") <= standard | {"torch"}


def test_what_is_copied_beside_a_model_needs_nothing_of_bonsai():
    standard = set(sys.stdlib_module_names)
    assert imports(COPIED) <= standard | {"torch", "transformers", "model"}


def test_the_configurator_needs_nothing():
    """Nor what it imports: --help and mistakes should not wait for torch."""
    standard = set(sys.stdlib_module_names)
    assert imports(ROOT / "configurator.py") <= standard | {"bonsai"}
    assert imports(ROOT / "bonsai" / "system" / "values.py") <= standard
    for name in ("paths", "config_files"):
        assert imports(ROOT / "bonsai" / "system" / f"{name}.py") <= standard | {"bonsai"}


def test_preparing_data_does_not_import_torch():
    """It takes a second, and a prepare script has no use for it."""
    modules = "bonsai.data.dataset, bonsai.data.writer, bonsai.tokenizers, bonsai.data.corpus"
    code = f"import sys; import {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment())
    assert done.returncode == 0
    for path in (ROOT / "data").glob("*/prepare.py"):
        assert "torch" not in imports(path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_starts_through_run(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.rstrip().endswith('if __name__ == "__main__":\n    run(main)')


CONFIGURED = [p for p in CODE if "configure(globals()" in p.read_text(encoding="utf-8")]
CONFIGURED = [p for p in CONFIGURED if p.name != "configurator.py"]


def declared_settings(tree: ast.Module) -> set[str]:
    plain = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    noted = [[node.target] for node in tree.body if isinstance(node, ast.AnnAssign)]
    names = [node for targets in plain + noted for target in targets for node in ast.walk(target)]
    return {n.id for n in names if isinstance(n, ast.Name) and n.id.islower()}


@pytest.mark.parametrize("path", CONFIGURED, ids=short)
def test_settings_are_read_from_one_object(path):
    """`c.learning_rate`, never the module's name: that is the default, in every call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    declared = declared_settings(tree)
    for part in (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)):
        nodes = [node for node in ast.walk(part) if isinstance(node, ast.Name)]
        own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        own |= {node.arg for node in ast.walk(part) if isinstance(node, ast.arg)}
        read = {node.id for node in nodes} & declared - own
        assert not read, f"{short(path)}:{part.lineno}: {', '.join(sorted(read))}"


@pytest.mark.parametrize("path", CONFIGURED, ids=short)
def test_no_setting_is_read_by_a_name_that_config_has_itself(path):
    """`c.given` are the names that were given; a setting called so is c["given"]."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken = declared_settings(tree) & {*Config.__annotations__, *dir(Config)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in nodes if getattr(node.value, "id", "") == "c"}
    assert not read & taken


def test_every_program_reads_its_settings_through_the_configurator():
    assert {ROOT / name for name in PROGRAMS} <= set(CONFIGURED)


def test_files_are_written_whole():
    """Through bonsai/files: a kill or a full disk leaves what was there, not half of it."""
    through = ("atomic.py", "access.py", "report.py", "writer.py")
    for path in (p for p in CODE if p.name not in through):
        text = path.read_text(encoding="utf-8").split('"""', 2)[-1]
        writes = re.findall(r"\.(?:write_text|write_bytes|savefig)\(|os\.replace\(", text)
        allowed = {"native.py": 1, "earlier.py": 4, "checkpoint.py": 3}
        named = [n for name, n in allowed.items() if short(path).endswith(name)]
        assert len(writes) <= sum(named), f"{short(path)}: {writes}"


# ---- the rooms of bonsai/ ----

# Data flow through them in this order: an import runs to a room above its own, or to model.py.
ROOMS = ["system", "files", "tokenizers", "data", "runs", "models", "planning", "training"]
ROOMS += ["evaluation", "engine", "serving"]


def rooms_imported(path: Path) -> set[str]:
    """The rooms of bonsai/ that a file imports from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "bonsai" and p[1] not in ("ROOT", "__version__")}


def test_bonsai_holds_rooms_only():
    folder = ROOT / "bonsai"
    rooms = {p.name for p in folder.iterdir() if p.name != "__pycache__"}
    assert rooms == {"__init__.py", *ROOMS}


@pytest.mark.parametrize("path", [p for p in PARTS if p.parent.name != "bonsai"], ids=short)
def test_no_import_runs_down(path):
    room = path.relative_to(ROOT / "bonsai").parts[0]
    assert rooms_imported(path) <= set(ROOMS[: ROOMS.index(room) + 1])


# ---- the rooms of tests/ ----

TESTS = ROOT / "tests"
WITHOUT_MODULE = {  # tests in a room that are of no module of it
    "tests/models/test_model.py": "model.py stands beside bonsai/",
    "tests/models/test_one_graph.py": "what a compiler makes of a training step of every config",
    "tests/models/test_parity.py": "against nanoGPT: weights, steps, checkpoints both ways",
    "tests/runs/test_kills.py": "whole runs killed at random moments",
    "tests/serving/page/test_chat.py": "web/chat.js, in a browser",
    "tests/tokenizers/test_tokenizers.py": "the table of tokenizers, in the room's __init__.py",
}


@pytest.mark.parametrize("path", [p for p in PARTS if p.name != "__init__.py"], ids=short)
def test_every_module_has_a_file_of_tests(path):
    """tests/<room>/test_<module>.py; an __init__.py only names what the room gives."""
    place = path.relative_to(ROOT / "bonsai").parent
    own = TESTS / place / f"test_{path.name}"
    assert own.is_file(), f"{short(own)} is missing: the tests of {short(path)}"
    nodes = ast.walk(ast.parse(own.read_text("utf-8")))
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert any(name.startswith("test_") for name in names)


def test_the_rooms_of_tests_are_those_of_the_code():
    """A file of tests whose module is gone, or has moved, is in the way."""
    files = [p for room in ROOMS for p in (TESTS / room).rglob("test_*.py")]
    modules = {p: ROOT / "bonsai" / p.relative_to(TESTS).parent / p.name[5:] for p in files}
    assert {short(p) for p, module in modules.items() if not module.is_file()} == {*WITHOUT_MODULE}


# ---- config files ----


@pytest.fixture(scope="module")
def two_steps(workplace, tmp_path_factory) -> dict[str, tuple[Path, Result]]:
    """Every config file with a tiny model on tiny data; those for OpenAI's weights are left out."""
    folder = tmp_path_factory.mktemp("configs")
    options = [*TINY, "--dataset=meta", "--max_iters=2", "--eval_interval=2"]
    options += ["--sample_interval=0", "--wandb_log=False"]

    def run(name: str) -> Result:
        return run_program([f"config/{name}", *options, f"--out_dir={folder / name}"], workplace)

    read = {name: settings("train.py", [str(ROOT / "config" / name)]) for name in CONFIG_FILES}
    names = [name for name, config in read.items() if not config["init_from"].startswith("gpt2")]
    with ThreadPoolExecutor(2) as pool:
        return {n: (folder / n, result) for n, result in zip(names, pool.map(run, names))}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_every_config_file_takes_two_steps(name, two_steps):
    config = settings("train.py", [str(ROOT / "config" / name)])
    if config["init_from"].startswith("gpt2"):
        assert config["init_from"] in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
        return
    out, result = two_steps[name]
    assert result.rc == 0, result
    assert load(out / "last.pt")["iter_num"] == 2
    assert "step 2: train loss" in result.stdout


def test_finetuning_takes_two_steps(workplace, tmp_path):
    """config/finetune_shakespeare.py from a folder in OpenAI's place."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    options = [*TINY, "--dataset=meta", f"--out_dir={tmp_path}", "--max_iters=2"]
    options += [f"--init_from={GOLDEN / 'hf_gpt2_tiny'}", "--wandb_log=False"]
    result = run_program(["config/finetune_shakespeare.py", *options], workplace)
    assert result.rc == 0, result


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_config_file_says_what_it_costs(name):
    lines = (ROOT / "config" / name).read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line)
    assert comment, "a config file opens with a comment: cost and expected loss"
    assert re.search(r"Cost: .*\d.*[Ee]xpect", " ".join(comment))
    assert len(lines) <= 60


def test_nanogpts_config_files_are_there():
    evals = {f"eval_gpt2{size}.py" for size in ("", "_medium", "_large", "_xl")}
    others = {"train_gpt2.py", "train_shakespeare_char.py", "finetune_shakespeare.py"}
    assert evals | others <= set(CONFIG_FILES)


# ---- words ----


def test_golden_files_are_small():
    files = [p for p in GOLDEN.rglob("*") if p.is_file()]
    assert files and all(p.stat().st_size < 200_000 for p in files)
