"""The parts of bonsai, a package for each stage on the way of the data: README.md has the map.

Programs import these; these import model.py; nothing imports a program.
"""

from pathlib import Path

__version__ = "0.1.0"

# where the programs, config/ and data/ are: a clone, or the folder that a built package has instead
_HERE = Path(__file__).resolve().parent
ROOT = _HERE / "programs" if (_HERE / "programs").is_dir() else _HERE.parent
