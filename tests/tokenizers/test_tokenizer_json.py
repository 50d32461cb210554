"""bonsai/tokenizers/tokenizer_json.py: the library of Hugging Face gives the same ids of it."""

import json

import pytest
from helpers.hostile_texts import HOSTILE, difficult_texts
from helpers.shared_data import need_vocabulary

from bonsai import tokenizers
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, CharTokenizer, SentencePieceTokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.hugging_face import from_tokenizer_json
from bonsai.tokenizers.jinja import jinja
from bonsai.tokenizers.patterns import GPT2, GPT4, PATTERNS
from bonsai.tokenizers.tokenizer_json import tokenizer_config, tokenizer_json

library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
TEXTS = ["the cat sat on the mat, and that's that", *HOSTILE]


def with_holes() -> BPETokenizer:
    """Ids that stand for nothing, and special tokens that do not follow the others."""
    tokens = [*BPETokenizer.train(TEXTS, 300).tokens, None, None]
    return BPETokenizer(tokens, GPT4, {"</s>": 310, EOT_TEXT: 305, "<pad>": 306}, eot="</s>")


def unreachable() -> BPETokenizer:
    """A token that merges do not lead to: a chunk that is one is it all the same."""
    tokens = [*tokenizers.bpe.BYTES, b"bc", b"abc", b"ab", b"xyz"]
    return BPETokenizer(tokens, GPT2, {EOT_TEXT: 260})


MADE = {
    "gpt4's pattern": lambda: BPETokenizer.train(TEXTS, 600),
    "gpt2's pattern": lambda: BPETokenizer.train(TEXTS, 400, GPT2),
    "no pattern": lambda: BPETokenizer.train(TEXTS[:8], 300, None),
    "no special tokens": lambda: BPETokenizer.train(TEXTS, 300, special_tokens=()),
    "several": lambda: BPETokenizer.train(TEXTS, 300, special_tokens=[EOT_TEXT, "<|user|>"]),
    "holes": with_holes,
    "unreachable": unreachable,
    "byte": lambda: tokenizers.get("byte"),
    "gpt2": lambda: tokenizers.get("gpt2"),
    "gpt4": lambda: tokenizers.get("gpt4"),
}


def theirs(tokenizer, special: bool = True):
    made = library.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    made.encode_special_tokens = not special
    return made


@pytest.mark.parametrize("name", MADE)
def test_the_same_ids_of_every_text(name):
    if name in ("gpt2", "gpt4"):
        need_vocabulary(name)
    ours = MADE[name]()
    with_special, without = theirs(ours), theirs(ours, special=False)
    texts = [*TEXTS, "abc xyz ab<|user|></s>"]
    if "'s pattern" in name:  # every character there is, each in its class
        texts += map(tokenizers.well_formed, difficult_texts())
    for text in texts:
        ids = ours.encode(text)
        assert without.encode(text, add_special_tokens=False).ids == ids, text[:60]
        found = ours.encode(text, allow_special=True)
        assert with_special.encode(text).ids == found, text[:60]
        assert with_special.decode(found, skip_special_tokens=False) == ours.decode(found)


@pytest.mark.parametrize(
    "name", ["gpt4's pattern", "gpt2's pattern", "several", "byte", "unreachable"]
)
def test_it_is_read_again(name):
    ours = MADE[name]()
    again = from_tokenizer_json(tokenizer_json(ours), "it")
    again = tokenizers.from_dict(json.loads(json.dumps(again)))
    assert (again.vocab_size, again.eot) == (ours.vocab_size, ours.eot)
    for text in TEXTS:
        assert again.encode(text, allow_special=True) == ours.encode(text, allow_special=True)
    assert tokenizer_json(again) == tokenizer_json(ours)


def test_a_token_that_others_join_to_but_no_merge_does():
    """Only in some contexts: in "abcd" there, with "bc" already joined, "abc" never comes about."""
    tokens = [*tokenizers.bpe.BYTES, b"abc", b"bc"]
    ours = BPETokenizer(tokens, GPT2, {EOT_TEXT: 258})
    assert ours.encode("abcd") == [256, ord("d")]
    with pytest.raises(UserError, match="the token b'abc' comes before those that it is made of"):
        tokenizer_json(ours)
    state = tokenizer_json(BPETokenizer([*tokens[:256], b"bc", b"xyz"], GPT2, {EOT_TEXT: 258}))
    state["model"]["vocab"]["abc"] = 259
    with pytest.raises(UserError, match="the token 'abc' can be made of two, but no merge does"):
        from_tokenizer_json(state, "it")
    state["model"]["ignore_merges"] = False  # then no text is ever encoded so
    assert from_tokenizer_json(state, "it")["special_tokens"] == {
        "xyz": 257,
        EOT_TEXT: 258,
        "abc": 259,
    }


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "byte"])
def test_what_needs_but_its_name_is_known_again(name):
    """Data that were prepared with it fit a model that comes back."""
    if name != "byte":
        need_vocabulary(name)
    ours = tokenizers.get(name)
    state = tokenizer_json(ours)
    assert from_tokenizer_json(state, "it", ours.vocab_size) == {"type": name}
    if name == "gpt4":  # of whose ids the last are another's
        fewer = from_tokenizer_json(state, "it", 100258)
        assert (fewer["type"], len(fewer["tokens"])) == ("bpe", 100256)


def test_characters():
    """Each is a token, and one that has no id is an error there too."""
    text = "".join(HOSTILE)
    ours = CharTokenizer.from_text(text)
    made = theirs(ours)
    for text in HOSTILE:
        assert made.encode(text).ids == ours.encode(text)
        assert made.decode(ours.encode(text)) == text
    with pytest.raises(Exception, match="UNK"):
        made.encode("\u4e01")
    assert from_tokenizer_json(tokenizer_json(ours), "it") == ours.to_dict()


@pytest.mark.parametrize("vocab", [None, [], {"a": 1}, {"a": "0"}, {"ab": 0}, {"a": 0, "b": 0}, {}])
def test_a_damaged_table_of_characters_is_refused(vocab):
    state = tokenizer_json(CharTokenizer("ab"))
    state["model"]["vocab"] = vocab
    with pytest.raises(UserError):
        from_tokenizer_json(state, "it")


def test_words_are_no_characters():
    state = tokenizer_json(CharTokenizer("ab"))
    with pytest.raises(UserError, match="WordLevel is not supported"):
        from_tokenizer_json({**state, "pre_tokenizer": {"type": "Whitespace"}}, "it")


def test_what_has_no_place_is_refused():
    own = BPETokenizer.train(TEXTS, 270, r"\w+|\W+")
    with pytest.raises(UserError, match="pattern is its own"):
        tokenizer_json(own)
    both = BPETokenizer([*tokenizers.bpe.BYTES, b"ab"], GPT4, {"ab": 257})
    with pytest.raises(UserError, match="'ab' is a special token and a plain one"):
        tokenizer_json(both)
    with pytest.raises(UserError, match="UTF-8"):
        tokenizer_json(CharTokenizer(["a", "\ud800"]))
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match="a sentencepiece tokenizer has no place"):
        tokenizer_json(SentencePieceTokenizer.train(TEXTS, 400))


def test_every_pattern_has_a_writing():
    for name, pattern in PATTERNS.items():
        ours = BPETokenizer.train(TEXTS, 260, pattern)
        assert from_tokenizer_json(tokenizer_json(ours), name)["pattern"] == pattern


# ---- tokenizer_config.json ----


def test_the_end_of_a_text_is_named():
    config = tokenizer_config(with_holes(), 64)
    assert config["eos_token"] == config["bos_token"] == "</s>" and config["model_max_length"] == 64
    assert "eos_token" not in tokenizer_config(CharTokenizer("ab"), 64)


CHAT = ChatTemplate.from_dict(
    {
        "start": EOT_TEXT,
        "roles": {
            "user": ["<|user|>'\"\\ {{ x }}", "\n"],
            "assistant": ["é\u2028: ", EOT_TEXT],
            "system": ["", "\n\n"],
        },
    }
)


@pytest.mark.parametrize("prompt", [True, False])
def test_the_template_renders_what_we_encode(prompt):
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [("system", "Be {{ brief }}."), ("user", "Why?\n"), ("assistant", "{% So %}")]
    dicts = [{"role": role, "content": content} for role, content in messages]
    compiled = rendering._compile_jinja_template(jinja(CHAT))
    text = compiled.render(messages=dicts, add_generation_prompt=prompt)
    tokenizer = tokenizers.get("byte")
    want = tokenizer.decode(CHAT.encode(tokenizer, messages))
    assert text == (want if prompt else want.removesuffix(CHAT.roles["assistant"][0]))
    with pytest.raises(Exception, match="the roles of this model are user, assistant, system"):
        compiled.render(messages=[{"role": "tool", "content": ""}])
