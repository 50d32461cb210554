"""SplitMix64 (Steele et al. 2014): turns similar numbers into unrelated ones, without any state.

The seed of a step's dropout, and the noise for a text's next token, are pure functions of their
position. So a resumed run, and a text in another batch, draw what they would have drawn anyway.
"""

import torch

MASK = 2**64 - 1
GAMMA, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(x: int) -> int:
    """The int64 with the low 64 bits of x, as torch takes it."""
    x &= MASK
    return x - 2**64 if x >> 63 else x


def splitmix(key: int, place: int) -> int:
    """Number `place` (0, 1, ...), below 2^64, of the stream of a key."""
    z = (key + (place + 1) * GAMMA) & MASK
    z = ((z ^ (z >> 30)) * MIX1) & MASK
    z = ((z ^ (z >> 27)) * MIX2) & MASK
    return z ^ (z >> 31)


GAMMA64, MIX1_64, MIX2_64 = map(signed, (GAMMA, MIX1, MIX2))


def splitmix_bits(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The upper 24 bits of `splitmix(keys, places - 1)`; both int64, broadcast together.

    The last step of `splitmix` is left out, because it changes only the lower 33 bits.
    """
    return (mixed(keys + places * GAMMA64) >> 40).bitwise_and_(2**24 - 1)


def splitmix_tensor(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`splitmix` of int64 tensors, broadcast together, as int64."""
    z = mixed(keys + (places + 1) * GAMMA64)
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


def mixed(z: torch.Tensor) -> torch.Tensor:
    """`splitmix` without its last step, in place. int64 wraps around, and its >> keeps the sign."""
    z = z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(MIX1_64)
    return z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(MIX2_64)
