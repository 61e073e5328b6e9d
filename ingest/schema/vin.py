"""The check digit of a vehicle identification number."""

from __future__ import annotations

from functools import lru_cache

VIN_CHARACTERS = 17
"""Number of characters of a VIN; a name of another length is not a VIN."""
_CHECK_DIGIT = 8
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_VALUES = {str(n): n for n in range(10)} | dict(
    zip("ABCDEFGHJKLMNPRSTUVWXYZ", (*range(1, 9), *range(1, 6), 7, *range(9, 10), *range(2, 10)),
        strict=True)
)  # fmt: skip


@lru_cache(100_000)
def check_digit_agrees(vin: str) -> bool:
    """Return whether the ninth character of a Chinese VIN is its check digit.

    Return True for all other names. Source: GB 16735, the same arithmetic as 49 CFR 565.15: the
    weighted sum of the characters' values modulo 11, with 10 written as X. A name of 17 characters
    that begins with L is not treated as a VIN if it holds I, O, Q or another character that no VIN
    has.
    """
    if len(vin) != VIN_CHARACTERS or vin[0] != "L" or not _VALUES.keys() >= set(vin):
        return True
    total = sum(
        weight * _VALUES[character] for weight, character in zip(_WEIGHTS, vin, strict=True)
    )
    return vin[_CHECK_DIGIT] == "0123456789X"[total % 11]
