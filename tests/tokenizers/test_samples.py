"""bonsai/tokenizers/samples.py: short, different, and each one line."""

from bonsai.tokenizers.samples import LANGUAGES, OTHERS


def test_the_samples_say_what_they_say_in_one_line_each():
    assert len(LANGUAGES) >= 12 and len(set(LANGUAGES.values())) == len(LANGUAGES)
    for text in (LANGUAGES | OTHERS).values():
        assert 20 < len(text) < 200 and text == text.encode().decode()
