"""Settings of training, and what the programs make of theirs."""

import ast
import runpy

from helpers.programs import ROOT

from bonsai.models.table import CONFIGS
from bonsai.planning.presets import FIELDS
from bonsai.training.settings import StepSettings
from configurator import configure

PROGRAMS = sorted(p.name for p in ROOT.glob("*.py") if p.stem not in ("model", "configurator"))

# of an optimizer and its schedule; some parts of a run shall be quick
SETTINGS = StepSettings(
    warmup_iters=100,
    lr_decay_iters=1000,
    embedding_lr=6e-3,
    head_lr=6e-4,
    scalar_lr=6e-4,
    momentum_warmup=10,
    cautious_decay=True,
)


def settings(program: str, arguments: list[str]) -> dict:
    """What a program makes of its arguments, without running it; SystemExit for a mistake."""
    namespace = runpy.run_path(str(ROOT / program), run_name="not main")
    source = ast.parse((ROOT / program).read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(source) if isinstance(n, ast.Call)]
    own = next(c for c in calls if getattr(c.func, "id", "") == "configure")
    models = CONFIGS if any(k.arg == "models" for k in own.keywords) else None
    presets = FIELDS if any(k.arg == "presets" for k in own.keywords) else None
    files_of = next((k.value.value for k in own.keywords if k.arg == "files_of"), "")
    return configure(namespace, models=models, argv=arguments, presets=presets, files_of=files_of)
