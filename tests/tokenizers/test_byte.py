"""bonsai/tokenizers/byte.py: any bytes, and half characters."""

from hypothesis import given
from hypothesis import strategies as st

from bonsai.tokenizers import ByteTokenizer


@given(st.binary())
def test_bytes_any_bytes_come_back(data):
    assert ByteTokenizer().decode_bytes(list(data)) == data


def test_byte_ids():
    assert ByteTokenizer().encode("aé") == [97, 0xC3, 0xA9]
    assert ByteTokenizer().decode([0xC3]) == "\ufffd"  # half a character
    assert ByteTokenizer.vocab_size == 257 and ByteTokenizer.eot == 256
