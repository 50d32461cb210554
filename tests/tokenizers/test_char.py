"""bonsai/tokenizers/char.py: ids in the order of code points, as nanoGPT has them."""

import pytest

from bonsai.system.errors import UserError
from bonsai.tokenizers import CharTokenizer


def test_char_ids_follow_code_points():
    tokenizer = CharTokenizer.from_text("banana!")
    assert tokenizer.chars == ["!", "a", "b", "n"]
    assert tokenizer.encode("nab!") == [3, 1, 2, 0]
    meta = tokenizer.nanogpt_meta()
    assert meta["vocab_size"] == 4
    assert meta["stoi"] == {"!": 0, "a": 1, "b": 2, "n": 3}
    assert meta["itos"] == {0: "!", 1: "a", 2: "b", 3: "n"}


def test_char_names_the_character_it_does_not_know():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) at position 2 .* 4 characters"):
        CharTokenizer.from_text("banana!").encode("naéb")
