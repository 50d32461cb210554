"""What the tests of several tokenizers share."""

import pytest
from helpers.shared_data import need_vocabulary, shared_folder

from bonsai.tokenizers import EOT_TEXT, BPETokenizer
from bonsai.tokenizers.patterns import GPT2, GPT4
from bonsai.tokenizers.ranks import read_vocab_bpe

VOCAB_BPE = "tiktoken_cache/6d1cbeee0f20b3d9449abfede4726ed8212e3aee"


PATTERNS = [("gpt2", "gpt2", GPT2), ("gpt4", "cl100k_base", GPT4)]


@pytest.fixture(params=PATTERNS, ids=["gpt2", "gpt4"])
def pair(request):
    """tiktoken's encoding, and ours with its ranks (GPT-2's from vocab.bpe, if it is at hand)."""
    name, encoding, pattern = request.param
    need_vocabulary(name)
    import tiktoken

    theirs = tiktoken.get_encoding(encoding)
    file = shared_folder() / VOCAB_BPE
    if name == "gpt2" and file.exists():
        tokens = read_vocab_bpe(file)
    else:
        tokens = [None] * (1 + max(theirs._mergeable_ranks.values()))
        for token, i in theirs._mergeable_ranks.items():
            tokens[i] = token
    return theirs, BPETokenizer(tokens, pattern, {EOT_TEXT: theirs.eot_token}, fast=False)
