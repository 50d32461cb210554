"""The system's browser, and where the pictures of what it showed go."""

import shutil
import subprocess
import sys
from pathlib import Path

from helpers.programs import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SHOTS = ROOT / "test-output" / "playground"
SECONDS = 60  # for anything to appear; this machine may be busy


def run_python(program: str, folder: Path) -> str:
    """What a program that the page copied prints."""
    file = folder / "copied.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
