"""bonsai/tokenizers/study.py: what is said of a vocabulary is what separate trainings show."""

from bonsai.tokenizers import BPETokenizer, study
from bonsai.tokenizers.patterns import GPT4
from bonsai.tokenizers.samples import LANGUAGES


def test_the_curve_is_that_of_separate_trainings():
    texts = list(LANGUAGES.values())
    curve = study.size_curve(texts, GPT4, sizes=(256, 300, 400))
    seen, unseen = study.held_out(texts)
    for size, of_seen, of_unseen in curve:
        alone = BPETokenizer.train(seen, size, GPT4, special_tokens=())
        assert study.tokens_per_byte(alone, seen) == of_seen
        assert study.tokens_per_byte(alone, unseen) == of_unseen
    assert curve[0] == (256, 1.0, 1.0) and curve[2][1] < curve[1][1] < 1


def test_unused_tokens_are_counted():
    tokenizer = BPETokenizer.train(["abc"], 300, special_tokens=())
    assert tokenizer.tokens[256:] == [b"ab", b"abc"]
    said = study.unused_tokens(tokenizer, ["abc", "abc"])
    assert said.endswith("257 of 258: 256 bytes and 1 merges, such as ab")
