"""The parts of bonsai, in rooms along the way that data take: README.md has the map.

Programs import these; these import model.py; nothing imports a program.
"""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parents[1]  # where the programs, config/ and data/ are
