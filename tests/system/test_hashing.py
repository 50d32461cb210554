"""bonsai/system/hashing.py: the published numbers, and the two forms of them agree."""

import torch

from bonsai.system.hashing import MASK, signed, splitmix, splitmix_bits, splitmix_tensor
from bonsai.system.runtime import seed_everything


def test_the_published_numbers():
    """Golden: the stream of seed 1234567, as in Java's SplittableRandom and Vigna's splitmix64.c.

    Should they ever differ, the noise of every text and the dropout of every resumed run do too.
    """
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567, place) for place in range(3)] == expected


def test_signed_keeps_the_bits():
    for x in (0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**70 + 5, -1, -(2**63)):
        assert -(2**63) <= signed(x) < 2**63 and signed(x) & MASK == x & MASK


def test_the_vector_form_is_the_other():
    keys = torch.tensor([[0], [1], [-1], [signed(2**63)], [1234567]])
    places = torch.tensor([0, 1, 2, 1000, 50304])
    for (key,), row in zip(keys.tolist(), splitmix_tensor(keys, places).tolist()):
        assert row == [signed(splitmix(key, place)) for place in places.tolist()]


def test_the_short_vector_form_is_the_upper_bits_of_the_other():
    keys = torch.tensor([[0], [1], [-1], [signed(2**63)], [1234567]])
    places = torch.tensor([1, 2, 3, 1000, 50304])
    bits = splitmix_bits(keys, places).tolist()
    for (key,), row in zip(keys.tolist(), bits):
        assert row == [splitmix(key, place - 1) >> 40 for place in places.tolist()]


def test_a_step_has_the_seed_it_always_had():
    seed_everything(1337, 5, 0)
    assert torch.initial_seed() & MASK == splitmix(splitmix(1337, 5), 0)
    seed_everything(1337)
    assert torch.initial_seed() == 1337
