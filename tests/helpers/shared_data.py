"""Files that some tests need and the repository does not hold: texts, tiktoken's vocabularies.

They are looked for in the folder that BONSAI_SHARED names, else in `shared` beside the repository.
"""

import os
from pathlib import Path

import pytest
from helpers.programs import ROOT


def shared_folder() -> Path:
    return Path(os.environ.get("BONSAI_SHARED") or ROOT.parent / "shared")


def shared(path: str) -> Path:
    """A file of the shared folder; the test is skipped where it is missing."""
    file = shared_folder() / path
    if not file.exists():
        pytest.skip(f"needs {path} in {shared_folder()} (BONSAI_SHARED names another folder)")
    return file


def need_vocabulary(name: str = "gpt2") -> None:
    """Let tiktoken, here and in subprocesses, find the vocabulary of the gpt2 or gpt4 tokenizer;
    the test is skipped where it is neither in the shared folder, nor cached, nor downloadable."""
    from bonsai.system.errors import UserError
    from bonsai.tokenizers import get

    if (cache := shared_folder() / "tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(cache))
    try:
        get(name).encode("")
    except UserError:
        pytest.skip(f"needs tiktoken's vocabulary for {name}: none in {cache}, and no network")
