"""Codes that each stand for an entry of a table: unevenly spaced values, and no zero point to store.

Entries are bytes around `MIDDLE`, as in a trellis whose window is one code: kernels look a line of codes
up in one instruction. Tables are part of a format, or a *palette*: learned for each weight, stored with it.

References
----------
Dettmers et al., arXiv:2305.14314 (NormalFloat); Rouhani et al., arXiv:2310.10537 (E2M1, microscaling);
Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982); Guo et al., arXiv:1706.02021
(sums of binary codes).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from laq.core.formats.trellis import MIDDLE

PALETTE_TAG = 32
"""What the tile table adds to the width of a tile whose entries are learned."""

PALETTE_BYTES = 28
"""Bytes of the palettes of a weight: 4, 8 and 16 entries."""

TRITS_OF_BYTE = 5
"""3 ** 5 = 243: a byte holds five digits of three values."""


@dataclass(frozen=True, slots=True)
class Table:
    """Entries that belong to the format.

    Parameters
    ----------
    name : str
        How plans and reports call it.
    code_bits : int
        Width of a code.
    tag : int
        What the tile table says.
    levels : tuple of int
        What each code stands for, in steps of the scale.
    table : uint8 [n_levels]
        The same as bytes; `MIDDLE` stands for zero.

    Examples
    --------
    >>> FP4.levels[:8], NF4.levels[0], TRITS.n_levels
    ((0, 1, 2, 3, 4, 6, 8, 12), -127, 3)
    """

    name: str
    code_bits: int
    tag: int
    levels: tuple[int, ...]
    table: npt.NDArray[np.uint8] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", (np.array(self.levels) + MIDDLE).astype(np.uint8))

    @property
    def n_levels(self) -> int:
        """Number of values a code takes."""
        return len(self.levels)

    @property
    def zero_point_bits(self) -> int:
        """Width of the zero point of a group: entries lie about zero, none is stored."""
        return 0


@dataclass(frozen=True, slots=True)
class Palette:
    """Entries that are learned for each weight.

    Parameters
    ----------
    name : str
        How plans and reports call it.
    code_bits : int
        Width of a code, 2 to 4.

    Examples
    --------
    >>> PALETTE3.tag, PALETTE3.entries
    (35, slice(4, 12, None))
    """

    name: str
    code_bits: int

    @property
    def n_levels(self) -> int:
        """Number of entries."""
        return 1 << self.code_bits

    @property
    def zero_point_bits(self) -> int:
        """Width of the zero point of a group: entries lie about zero, none is stored."""
        return 0

    @property
    def tag(self) -> int:
        """What the tile table says: the width, and `PALETTE_TAG` more."""
        return PALETTE_TAG + self.code_bits

    @property
    def entries(self) -> slice:
        """Where its entries lie among the `PALETTE_BYTES` of a weight."""
        return slice(self.n_levels - 4, 2 * self.n_levels - 4)


NF4 = Table("nf4", 4, 48 + 4, (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127))
"""Quantiles of a normal distribution, times 127."""

FP4 = Table("fp4", 4, 64 + 4, (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))
"""Floats of one sign, two exponent and one mantissa bit, doubled: whole numbers."""

TRITS = Table("trits", 2, 80 + 2, (-1, 0, 1))
"""Three values, five codes to a byte."""

RESIDUALS = (
    Table("residual45", 2, 96 + 2, (-29, -11, 11, 29)),
    Table("residual55", 2, 112 + 2, (-31, -9, 9, 31)),
    Table("residual65", 2, 128 + 2, (-33, -7, 7, 33)),
    Table("residual75", 2, 144 + 2, (-35, -5, 5, 35)),
)
"""Sums of two binary codes: 20 steps by the first bit, 45, 55, 65 or 75 % of them by the second. The ratio is
the tile's: one for each row would gain what its two bits cost (docs/METHODS.md)."""

PALETTE2 = Palette("palette2", 2)
PALETTE3 = Palette("palette3", 3)
PALETTE4 = Palette("palette4", 4)
