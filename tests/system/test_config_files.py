"""bonsai/system/config_files.py: what a file binds, and code in it that would set nothing.

tests/programs/test_configurator.py has what a user sees of it.
"""

import pytest

from bonsai.system.config_files import names_set_by, parse_file, refuse_idle_code, run_file
from bonsai.system.errors import UserError


def written(folder, text: str):
    path = folder / "run.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_asked_for_what_it_binds(tmp_path):
    text = "batch_size = 2 * seed\n_half = batch_size // 2\nn_layer: int = _half\nimport math\n"
    path = written(tmp_path, text)
    bound = run_file(path, "run.py", parse_file(path, "run.py"), {"batch_size": 1, "seed": 4})
    assert {"batch_size": 8, "_half": 4, "n_layer": 4}.items() <= bound.items()
    assert "math" in bound and "seed" not in bound
    assert names_set_by(path) == {"batch_size", "_half", "n_layer"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("class Run:\n    batch_size = 4", "run.py:1: batch_size in class Run sets nothing"),
        ("class Run:\n    batch_size: int = 4", "run.py:1: batch_size in class Run sets nothing"),
        ("def f():\n    batch_size = 4", "run.py:1: batch_size in function f sets nothing"),
        ("def f():\n    batch_size = 4\nf()", "run.py:1: batch_size in function f sets nothing"),
        ("async def f():\n    seed = 4", "run.py:1: seed in function f sets nothing"),
        (
            "def f():\n    global batch_size\n    batch_size = 4",
            "run.py:1: batch_size in function f sets nothing",
        ),
        (
            "class Run:\n    def f(self):\n        batch_size = 4\nRun().f()",
            "run.py:2: batch_size in function f sets nothing",
        ),
        ("batch_size = 4\ndel batch_size", "run.py:2: del batch_size sets nothing"),
        ("if seed is None:\n    batch_size == 4", "run.py:2: batch_size == 4 sets nothing"),
        ("for _ in range(3):\n    batch_size: 4", "run.py:2: batch_size: 4 sets nothing"),
    ],
)
def test_what_would_set_nothing_is_a_mistake(tmp_path, text, words):
    tree = parse_file(written(tmp_path, text), "run.py")
    with pytest.raises(UserError) as e:
        refuse_idle_code(tree, "run.py", ["batch_size", "seed"])
    assert words in str(e.value)
