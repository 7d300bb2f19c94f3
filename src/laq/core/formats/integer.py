"""Unsigned integers: a code q in 0 .. n_levels - 1 stands for scale * (q - zero_point)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Integer:
    """Evenly spaced values.

    Parameters
    ----------
    name : str
        How plans and reports call it.
    code_bits : int
        Width of the stored field, 0 (nothing stored, all zero) to 8.
    n_levels : int
        Number of values a code takes, at most 2 ** code_bits.

    Examples
    --------
    >>> TERNARY.code_bits, TERNARY.n_levels
    (2, 3)
    """

    name: str
    code_bits: int
    n_levels: int

    @property
    def zero_point_bits(self) -> int:
        """Width of the zero point of a group."""
        return self.code_bits

    @property
    def tag(self) -> int:
        """What the tile table says: the width."""
        return self.code_bits


ABSENT = Integer("absent", 0, 1)
INT1 = Integer("int1", 1, 2)
TERNARY = Integer("ternary", 2, 3)
INT2 = Integer("int2", 2, 4)
INT3 = Integer("int3", 3, 8)
INT4 = Integer("int4", 4, 16)
INT5 = Integer("int5", 5, 32)
INT6 = Integer("int6", 6, 64)
INT8 = Integer("int8", 8, 256)
