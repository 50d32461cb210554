"""The parts of bonsai: data, tokenizers, optimizers, checkpoints, generation.

Programs import these; these import model.py; nothing imports a program.
"""

__version__ = "0.1.0"
