"""The check digit of a vehicle identification number."""

from __future__ import annotations

from functools import lru_cache

VIN_CHARACTERS = 17
"""A name of another length is no VIN."""
_CHECK_DIGIT = 8
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_VALUES = {str(n): n for n in range(10)} | dict(
    zip("ABCDEFGHJKLMNPRSTUVWXYZ", (*range(1, 9), *range(1, 6), 7, *range(9, 10), *range(2, 10)),
        strict=True)
)  # fmt: skip


@lru_cache(100_000)
def check_digit_agrees(vin: str) -> bool:
    """Whether the ninth character of a Chinese VIN is its check digit; true for all other names.

    Source: GB 16735, the same arithmetic as 49 CFR 565.15: weighted sum of the characters' values
    modulo 11, 10 written X. A name of 17 characters that begins with L and holds I, O, Q or
    anything else that no VIN has is taken for no VIN.
    """
    if len(vin) != VIN_CHARACTERS or vin[0] != "L" or not _VALUES.keys() >= set(vin):
        return True
    total = sum(
        weight * _VALUES[character] for weight, character in zip(_WEIGHTS, vin, strict=True)
    )
    return vin[_CHECK_DIGIT] == "0123456789X"[total % 11]
