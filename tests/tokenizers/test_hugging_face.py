"""bonsai/tokenizers/hugging_face.py: a folder's own, as transformers reads it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.gpt2_folder import save, transformers
from helpers.hostile_texts import HOSTILE, difficult_texts
from helpers.programs import run_program
from helpers.shared_data import need_vocabulary

from bonsai import tokenizers
from bonsai.engine.text import find_tokenizer
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate
from bonsai.tokenizers.hugging_face import read_chat
from bonsai.tokenizers.jinja import jinja

TEXT = (
    "To be, or not to be: that is the question.\n\tdef f(x):  return x\n It's 1234 or 56, naïve ☃!"
)


def trained(size: int = 400, first: bool = False):
    """A byte-level BPE of the tokenizers library; first: the special token has the lowest id."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    names = ["<|endoftext|>"] if first else []
    tokenizer.train_from_iterator([TEXT * 5] * 5, size - (not first), 2, special_tokens=names)
    if not first:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def folder_with(tmp_path: Path, tokenizer, form: str, vocab_size: int = 0) -> Path:
    folder = save(tmp_path / "hf", vocab_size=vocab_size or tokenizer.get_vocab_size())
    if form == "tokenizer.json":
        tokenizer.save(str(folder / "tokenizer.json"))
    elif form == "vocab.json":
        tokenizer.save_model(str(folder))
        added = {"<|endoftext|>": tokenizer.token_to_id("<|endoftext|>")}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>"
        )
        fast.save_pretrained(folder)
    return folder


TEXTS = [TEXT, "", " ", "  two  blanks ", "\n\n\n", "zebra 😀 xyz", "don't DON'T", "a" * 50]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "saved by transformers"])
@pytest.mark.parametrize("first", [True, False])
def test_a_folders_own_tokenizer_is_used(tmp_path, form, first):
    theirs = trained(first=first)
    loaded = load_model(str(folder_with(tmp_path, theirs, form)), "")
    ours, where = find_tokenizer(loaded)
    assert str(tmp_path / "hf") in where
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == text
    assert ours.vocab_size == theirs.get_vocab_size() > 300
    assert ours.eot == theirs.token_to_id("<|endoftext|>")
    again = tokenizers.from_dict(json.loads(json.dumps(loaded.tokenizer)))
    assert again.encode(TEXT) == ours.encode(TEXT) and again.eot == ours.eot
    slow = tokenizers.BPETokenizer(ours.tokens, ours.pattern, ours.special_tokens, fast=False)
    assert slow.encode(TEXT) == ours.encode(TEXT)  # by our own code


def smollm(tmp_path: Path, missing: bool = False) -> Path:
    """A folder with the shape of SmolLM2's: its tokenizer, its kind of model, in small. missing:
    the vocabulary lacks bytes that its text does not have, as that one's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    theirs.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    if missing:
        from bonsai.tokenizers.bpe import RARE
        from bonsai.tokenizers.ranks import gpt2_alphabet

        letters = [c for c, byte in gpt2_alphabet().items() if byte not in RARE]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=names, initial_alphabet=letters, show_progress=False
    )
    theirs.train_from_iterator([TEXT * 5] * 5, trainer)
    folder = tmp_path / "smollm"
    sizes = dict(vocab_size=theirs.get_vocab_size(), hidden_size=72, intermediate_size=192)
    sizes |= dict(num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3)
    sizes |= dict(max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True)
    config = transformers.LlamaConfig(**sizes, rope_theta=100000.0, eos_token_id=2, bos_token_id=1)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    theirs.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    settings |= {"bos_token": names[1], "eos_token": names[2], "unk_token": names[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


DIGITS = [
    "a  1",
    " 12  3\n\n4 ",
    "x ² ½ Ⅻ ३४ y",
    "it's 1's",
    "  7",
    "1 <|im_start|> 2",
    "<repo_name>",
]


@pytest.mark.parametrize("missing", [False, True])
def test_a_folder_like_smollm2s(tmp_path, missing):
    """Digits each by itself, special tokens first, Llama's shape with grouped heads, tied."""
    from tokenizers import Tokenizer

    folder = smollm(tmp_path, missing)
    theirs, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), load_model(str(folder))
    ours, _ = find_tokenizer(loaded)
    for text in [*TEXTS, *DIGITS, *HOSTILE, *difficult_texts()[:99]]:
        if missing and {*text.encode("utf-8", "replace")} & {*ours.lacking}:
            with pytest.raises(UserError, match="for which there is no token"):
                ours.encode(text)
            continue
        text = tokenizers.well_formed(text)
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids, text
    assert bool(ours.lacking) == missing and ours.eot == 2
    assert tokenizers.from_dict(ours.to_dict()).lacking == ours.lacking
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(ours.vocab_size, (2, 64))
    with torch.no_grad():
        want, given = model(ids).logits, loaded.model.eval()(ids, ids)[0]
    assert want.std() > 0.01
    torch.testing.assert_close(given, want, atol=1e-5, rtol=1e-5)


# ---- chat templates ----

CHATML = jinja(TEMPLATES["chatml"])
NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": CHATML}]


@pytest.mark.parametrize(("config", "file", "found"), [
    ({}, None, False),
    ({"chat_template": None}, None, False),
    ({"chat_template": CHATML}, None, True),
    ({"chat_template": NAMED}, None, True),
    ({"chat_template": NAMED[:1]}, None, False),
    ({"chat_template": [3, {"name": 5}]}, None, False),
    ({"chat_template": "{{ tools }}"}, CHATML, True),
    ({}, CHATML + "\n", True),
])  # fmt: skip
def test_where_a_folder_has_its_chat_template(tmp_path, config, file, found):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    assert read_chat(tmp_path) == (TEMPLATES["chatml"] if found else None)


def test_names_of_tokens_in_a_template(tmp_path):
    source = jinja(ChatTemplate({"user": ("U", "E"), "assistant": ("A", "E")})).replace(
        '"E"', "eos_token"
    )
    config = {"chat_template": source, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat(tmp_path).roles["user"] == ("U", "</s>")
    for wrong, hint in (
        ({**config, "eos_token": None}, "eos_token"),
        ({"chat_template": 5}, "no t"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=hint):
            read_chat(tmp_path)


def test_a_vocabulary_of_gpt2s_size_is_not_taken_for_gpt2s(tmp_path):
    folder = folder_with(tmp_path, trained(), "tokenizer.json", vocab_size=50257)
    ours, _ = find_tokenizer(load_model(str(folder), ""))
    assert ours.vocab_size < 400 and ours.encode(TEXT) == trained().encode(TEXT).ids


def test_gpt2s_own_is_known_by_its_contents(tmp_path):
    """Written out in full it is still {"type": "gpt2"}; one merge less is another tokenizer."""
    need_vocabulary()
    from bonsai.tokenizers.hugging_face import read_folder
    from bonsai.tokenizers.ranks import gpt2_alphabet

    gpt2 = tokenizers.get("gpt2")
    letters = {byte: c for c, byte in gpt2_alphabet().items()}
    spelt = ["".join(letters[b] for b in token) for token in gpt2.as_bpe.tokens]
    vocab = {token: i for i, token in enumerate(spelt)} | {"<|endoftext|>": 50256}
    pairs = [["".join(letters[b] for b in part) for part in pair] for pair in gpt2.as_bpe.merges()]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, pairs)]))
    assert read_folder(tmp_path, 50257) == {"type": "gpt2"}
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, pairs[:-1])))
    state = read_folder(tmp_path, 50257)
    assert state["type"] == "bpe" and len(state["special_tokens"]) == 2


def test_an_end_of_text_of_another_name(tmp_path):
    theirs = trained()
    theirs.add_special_tokens(["</s>"])
    folder = folder_with(tmp_path, theirs, "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    loaded = load_model(str(folder), "")
    ours, _ = find_tokenizer(loaded)
    assert ours.eot == theirs.token_to_id("</s>") and ours.decode([ours.eot]) == "</s>"
    assert tokenizers.from_dict(loaded.tokenizer).eot == ours.eot


def test_data_are_prepared_with_a_folders_tokenizer(tmp_path):
    """By the folder or its tokenizer.json, with the same description as the model's."""
    theirs = trained()
    theirs.add_special_tokens(["</s>"])
    folder = folder_with(tmp_path, theirs, "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    wanted = load_model(str(folder), "").tokenizer
    for name in (folder, folder / "tokenizer.json"):
        assert tokenizers.get(name).to_dict() == wanted
    (folder / "config.json").rename(tmp_path / "aside")  # of a tokenizer without a model
    assert tokenizers.get(folder).to_dict() == wanted
    (tmp_path / "aside").rename(folder / "config.json")
    shutil.copy(folder / "tokenizer.json", tmp_path / "alone.json")
    assert tokenizers.get(tmp_path / "alone.json").encode(TEXT) == theirs.encode(TEXT).ids
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokenizers.get(folder)


def altered(**parts):
    """A tokenizer.json with other parts; model: of its model."""

    def alter(folder: Path) -> None:
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        model = parts.get("model", {})
        path.write_text(json.dumps({**state, **parts, "model": {**state["model"], **model}}))

    return alter


def doubled(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["merges"].append(state["model"]["merges"][0])
    path.write_text(json.dumps(state))


def shuffled(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    names = list(state["model"]["vocab"])
    state["model"]["vocab"] = {name: len(names) - 1 - i for i, name in enumerate(names)}
    path.write_text(json.dumps(state))


def with_config(**config):
    def alter(folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return alter


def other_kind(name: str, config: dict):
    def alter(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_text("[PAD]\n[UNK]\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    return alter


template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}
word = {"id": 399, "content": "word", "special": False}
UNSUPPORTED = {
    "WordPiece": (altered(model={"type": "WordPiece"}), "WordPiece"),
    "Unigram": (altered(model={"type": "Unigram"}), "Unigram"),
    "dropout": (altered(model={"dropout": 0.1}), "dropout"),
    "suffix": (altered(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix"),
    "normalizer": (altered(normalizer={"type": "NFC"}), "normalizer"),
    "whitespace": (altered(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    "no pre_tokenizer": (altered(pre_tokenizer=None), "pre_tokenizer"),
    "prefix": (altered(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "ByteLevel"),
    "prefix of the config": (with_config(add_prefix_space=True), "add_prefix_space"),
    "template": (altered(post_processor=template), "post_processor"),
    **{f"template {i}": (altered(post_processor=part), "post_processor") for i, part in enumerate([
        {"type": "Sequence", "processors": 5}, {"type": "Sequence", "processors": [[1]]},
        {"type": "TemplateProcessing", "single": [5]}, {**template, "single": [["Sequence"]]},
    ])},
    "a long token": (
        altered(model={"ignore_merges": True, "vocab": {"ab" * 50_000: 1}, "merges": []}), "too l"),
    "a word of its own": (altered(added_tokens=[word]), "word"),
    "no merges": (altered(model={"merges": [["a", "zzz"]]}), "merges"),
    "a merge twice": (doubled, "is there twice"),
    "merges of words": (altered(model={"merges": 3}), "list"),
    "no vocabulary": (altered(model={"vocab": [1]}), "vocabulary"),
    "ids of words": (altered(model={"vocab": {"a": "b"}}), "vocabulary"),
    "huge ids": (altered(model={"vocab": {"a": 10**12}, "merges": []}), "belong together"),
    "few bytes": (altered(model={"vocab": {"a": 1}, "merges": []}), "bytes"),
    "shuffled": (shuffled, "order of its merges"),
    "wordpiece file": (other_kind("vocab.txt", {"tokenizer_class": "BertTokenizer"}), "Bert"),
    "sentencepiece": (other_kind("tokenizer.model", {}), "tokenizer.model"),
    "code": (other_kind("x.txt", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}), "auto_map"),
    "none": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer of its"),
    "damaged": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return folder_with(tmp_path_factory.mktemp("whole"), trained(), "tokenizer.json")


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_tokenizer_that_is_not_supported_is_named(whole, tmp_path, kind):
    """Never taken for OpenAI's. The weights load all the same, to be trained on prepared data."""
    folder = shutil.copytree(whole, tmp_path / "hf")
    alter, hint = UNSUPPORTED[kind]
    alter(folder)
    loaded = load_model(str(folder), "")
    assert loaded.tokenizer is None
    with pytest.raises(UserError, match=hint) as e:
        find_tokenizer(loaded)
    assert "\n" not in str(e.value) and "data/None" not in str(e.value)


def test_without_a_tokenizer_gpt2s_is_assumed_aloud(tmp_path):
    folder = save(tmp_path / "hf", vocab_size=50257)
    tokenizer, where = find_tokenizer(load_model(str(folder), ""))
    assert tokenizer.vocab_size == 50257 and "as" in where and str(folder) in where


def test_programs_with_a_folder_of_its_own_tokenizer(whole, workplace):
    options = [f"--init_from={whole}", "--num_samples=1", "--max_new_tokens=5", "--device=cpu"]
    result = run_program([*options, "--start=To be"], workplace, program="sample.py")
    assert result.rc == 0 and result.stdout.startswith("To be"), result
    assert str(whole) in result.stderr.split("tokenizer:")[1]
