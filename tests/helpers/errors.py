"""What is asked of an error message."""


def one_line(e) -> str:
    text = str(e.value)
    assert "\n" not in text
    return text
