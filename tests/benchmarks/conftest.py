"""What the tests of benchmarks share."""

import pytest
from helpers.made_model import TEXT, knows_text

from bonsai.data.writer import Writer
from bonsai.tokenizers import ByteTokenizer


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """A folder with a run that knows one text, and the data it names."""
    folder = tmp_path_factory.mktemp("made_run")
    knows_text(folder / "out-byte", block_size=64, config={"dataset": "tiny"})
    coder = ByteTokenizer()
    with Writer(folder / "data" / "tiny", coder) as writer:
        for split in ("train", "val"):
            writer.add(split, coder.encode(TEXT * 3), text_bytes=3 * len(TEXT.encode()))
        writer.finish()
    return folder
