"""Pseudorandom permutations that compute the image of an index directly, without a table."""

import hashlib

from jaxtyping import Int64, UInt64
import numpy as np

# Odd 64-bit constants: the increment of the key per round, the increment of the key per epoch, and
# the multiplier of the round's input. The three must differ: otherwise round r at x would equal
# round r + 1 at x - 1.
_ROUND_STEP = np.uint64(0x9E3779B97F4A7C15)
_EPOCH_STEP = np.uint64(0xD1342543DE82EF95)
_SPREAD = np.uint64(0xAEF17502108EF2D9)
_ROUNDS = 4


def stream_key(seed: int, name: str) -> np.uint64:
    """Return a 64-bit key that depends only on ``seed`` and ``name``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def epoch_keys(
    keys: UInt64[np.ndarray, " n"], epochs: Int64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """Return the permutation key of epoch ``epochs[i]`` for the corpus with key ``keys[i]``."""
    return _mix(keys + epochs.astype(np.uint64) * _EPOCH_STEP)


def permute(
    index: Int64[np.ndarray, " n"],
    size: Int64[np.ndarray, " n"],
    keys: UInt64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Return the image of ``index[i]`` under a permutation of ``range(size[i])`` for each i.

    ``keys[i]`` selects the permutation. For a fixed key and a fixed size with 1 <= size < 2**62,
    the map is a bijection of ``range(size)``. A Feistel network on range(a) x range(b), with a * b
    slightly larger than size, is applied until the result is less than size. This is the
    cycle-walking cipher of Black and Rogaway (2002), "Ciphers with arbitrary finite domains".
    """
    wide = size.astype(np.uint64)
    # Any a is correct if a * b >= size, so a rounding error of the square root is harmless.
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    b = (wide + a - np.uint64(1)) // a
    out = _rounds(index.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(out >= wide)
    while outside.size:
        out[outside] = _rounds(out[outside], a[outside], b[outside], keys[outside])
        outside = outside[out[outside] >= wide[outside]]
    return out.astype(np.int64)


def _rounds(
    index: UInt64[np.ndarray, " n"],
    a: UInt64[np.ndarray, " n"],
    b: UInt64[np.ndarray, " n"],
    keys: UInt64[np.ndarray, " n"],
) -> UInt64[np.ndarray, " n"]:
    """Return the image of each index under the Feistel network, a bijection of range(a * b)."""
    left, right = index // b, index % b
    for _ in range(_ROUNDS):
        keys = keys + _ROUND_STEP
        left = (left + _mix(right * _SPREAD ^ keys) % a) % a
        keys = keys + _ROUND_STEP
        right = (right + _mix(left * _SPREAD ^ keys) % b) % b
    return left * b + right


def _mix(bits: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Return the hash of each integer by the finalizer of SplitMix64 (Steele et al. 2014).

    Each input bit flips half of the output bits on average.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
