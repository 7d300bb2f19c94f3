"""Trellis codes: what a code stands for depends on the codes before it.

The last eight bits of codes are an index into a table of 256 entries: a tile of b bits still stores b bits
a weight, but its weights together choose from far more points than 2 ** b levels have. The encoder looks for
the cheapest path through the table (Viterbi's algorithm). At equal bits the squared error is about 0.7 of
that of evenly spaced values, and no zero point has to be stored.

Codes follow each other down the 16 rows of a column, then down the column four to the right; so a tile has
four chains, each of which starts after zeros. The order is that of the bytes in which kernels unpack codes:
the code before lies four bytes before.

References
----------
Marcellin and Fischer, Trellis coded quantization, IEEE Trans. Commun. 38 (1990); Tseng et al.,
arXiv:2406.11235.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from laq.core.groups import TILE_ROWS

CHAINS = 4
WINDOW_BITS = 8
MIDDLE = 128
"""Entries are stored as bytes: this one stands for zero."""

TAG = 16
"""What the tile table adds to the width of a trellis tile."""


@dataclass(frozen=True, slots=True)
class Trellis:
    """A table of 256 entries.

    Parameters
    ----------
    name : str
        How plans and reports call it.
    code_bits : int
        Width of the stored field, 1 to 6.
    unit : float
        Entries to one standard deviation of the values that the table is made for.
    error_terms : tuple of float
        (a, c, d): a value of u standard deviations has a squared error of about a + c u^4 + d u^6.
    digits : str
        The entries, in hexadecimal; bench/trellis_tables.py made them.
    table : uint8 [256]
        The entries; `MIDDLE` stands for zero.

    Examples
    --------
    >>> TRELLIS2.code_bits, TRELLIS2.n_levels, TRELLIS2.table.shape
    (2, 4, (256,))
    """

    name: str
    code_bits: int
    unit: float
    error_terms: tuple[float, float, float]
    digits: str = field(repr=False)
    table: npt.NDArray[np.uint8] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", np.frombuffer(bytes.fromhex(self.digits), np.uint8))

    @property
    def n_levels(self) -> int:
        """Number of values of a code."""
        return 1 << self.code_bits

    @property
    def zero_point_bits(self) -> int:
        """No zero points are stored."""
        return 0

    @property
    def tag(self) -> int:
        """What the tile table says."""
        return TAG + self.code_bits


def windows(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return the last eight bits of codes up to each code, that code lowest.

    codes : uint8 [n, 16, group_size]        Returns the same shape

    Examples
    --------
    >>> codes = np.zeros((1, 16, 32), np.uint8)
    >>> codes[0, 15, 1], codes[0, 0, 5] = 3, 2
    >>> windows(codes, 2)[0, :3, 5].tolist()
    [14, 56, 224]
    """
    n, _, group_size = codes.shape
    slots = codes.reshape(n, TILE_ROWS, group_size // CHAINS, CHAINS).transpose(0, 2, 1, 3)
    chains = slots.reshape(n, -1, CHAINS)
    result = chains.astype(np.uint16)
    for back in range(1, -(-WINDOW_BITS // bits)):
        result[:, back:] |= chains[:, :-back].astype(np.uint16) << (bits * back)
    by_slot = result.astype(np.uint8).reshape(n, group_size // CHAINS, TILE_ROWS, CHAINS)
    return np.ascontiguousarray(by_slot.transpose(0, 2, 1, 3)).reshape(codes.shape)


TRELLIS1 = Trellis(
    "trellis1",
    1,
    59.188,
    (0.1569, 0.04249, 0.0),
    "55afa855ab5651a69a7241bb6d934da1a35934959872da774f35ab7b918be94750d9c671802492903993a86d61b1993c"
    "97e0702a8778bc55df851c7256a8a25fa25871da1b8bc266479768d09d53a750d17a1656b59f637d7c7fc468a653ae30"
    "986e188c53e06d8cb5936e19bc5a60a959b16e894ea64ebbb056509bef7d44a0258f62bf66af922c9147a65065dc876e"
    "b5625a9d903caf6291736aeb37ac0494db72558d66b3cf575c7084b3887c13d5621e99b6858865fda44f5fae3c9366be"
    "b8028753b35d9968b7ff5c86658832af3591d8807f41965d6b876ab073db45996b9558bd8c448bb98f3fbe7354a89a3b"
    "b9669b63d371228a65c084749b39b75e",
)
TRELLIS2 = Trellis(
    "trellis2",
    2,
    43.126,
    (0.04114, 0.01282, 0.0),
    "8ebb6e46c7735198878867ae3f8a6ab4a07356818a70cda30e3d9865a27be85276e9a0c1602e927c386094706f88a454"
    "97c385628d6eb552a581476390b271427a5f96b83597bf775ea680d27e4b9568af8c325dbd95607d829ec66e835ba71e"
    "6a863ba961cf82a4c695683ab66e508f74a5578871984ab8db6a1f99ee755595477087a576a98447846aa1435bd19b7c"
    "ad59788e8c45ae6c4e6f84bd58992a7abb95617888a6d75f5a768ca7848e30bf6143a3d5a18566fcb2456e871c8f77b1"
    "a1016f33b07d8f58b9d65987719351cf538bac77765c933a49856da27abb6098826339a1456ea789722cb38f4db38261"
    "ad75944dd35c238c65af8e7b9550b473",
)
TRELLIS3 = Trellis(
    "trellis3",
    3,
    38.087,
    (0.01061, 0.003561, 4.791e-05),
    "87b17a43c69662a194877dae546d669b95685776877accb1132f7d67a68bdc4d6dd4af9b5b408c7d396a7a5c8492a172"
    "92c88565a273b44eb88245758da1685a8d5b9bb0367cbe6f58a68fbf73458165ab923751ba9f74828ba2b1967d6ec527"
    "7e914d8465b971a2ab995c3bcc7b708a70b27f84628f519cd0441da9ea6755924c69709a7c8f855f6f60995142c2897c"
    "9e5b75928549a96b57646ebf488a1c7cbb7f5c6f98a6db8d5e7c6c7992a030af744aa9bc968562fca4556584339677bc"
    "ab017433c5889b57bae3559d688645cc5181a360756a8f3c637555996db28b806d783ba94f6095877b27a18c40b36152"
    "8473942ad55d42a776907b879b50ac67",
)
TRELLIS4 = Trellis(
    "trellis4",
    4,
    36.106,
    (0.002872, 0.000659, 8.295e-05),
    "87706702d0b67b9c8d59a97f76419483936e795daa8d8796529cce40354aa281b29e8d957ea44e7285ca62576bac79bb"
    "38b0a84f8bbe839fe4916b619a738078a3574113ac85b5766b977f4e60ca88906f789e7a65825691ad5dbe6a80637489"
    "685f6f66447b92a399ed8975c352ac5c8e30b37453c4a2855e7f799ba9666b70526c75a5bb639a69ca7c925a6184718b"
    "3c9558bd70ae458e6369837888a29b7d4a677d2a996f76aca18453888e5cb89531824caf9f58647e78ba996e92278ba6"
    "7c6497d8844fc42f9172a35cb48c431c72c28680789e8f895aaab448dd9667369a88603bb4686effd5a57390227d5749"
    "448f8289a65f4b3b739e7a95576c6352",
)
TRELLIS5 = Trellis(
    "trellis5",
    5,
    34.568,
    (0.0007882, 1.618e-05, 6.579e-05),
    "817d97866b8daea264456d7f27775167707491a67bc76a899c84615e718759797a94848d657d9ebc4fb9b0a18775b4d1"
    "c7aa8a5381964b8f91995b6a7256c26e8e7cbcad982c849ba36dce4c699f7fda8863725a559491b360c479b875678ba8"
    "866a4b5090a97b5ea0546693338e6f847e899564b89ba4ad989d813d7762448b6a5f578895b0819eb7a620aa8b998f92"
    "8b733b7c63a376825b6f7d468579531594776879d5818740be9faa84a28a9b7e49a530757b5d977372906fb38d6d3951"
    "a78176c14d6a71946766439a9f728a576eaf87e25f91798d836d5dff7e3762976bb5a27c6e596749acbe50563f60045d"
    "b1799a70cb8574ec765b8d81a864949e",
)
TRELLIS6 = Trellis(
    "trellis6",
    6,
    34.836,
    (0.0001825, 0.0, 3.696e-05),
    "86707002beac749a8c6ea4767362907f926a835fa1858d8f5b9bd047414c9d84a59787897e9f557288c265586ca278b4"
    "37a9ab5081b080a7e38a776895797c7b96584a12ae82b97e6a907f5362c08b9076689f7c667c5f87aa64b36a85617783"
    "7066696544748fa193ee896fc55ca55a8d3da2795eba9b8168807a999c6c6d6d536b7c97b1649470cb7e925d6586728d"
    "4b955cbc74a84e90606e81738a9c977d4f6779249b7775a39988598c8f5ea692318451ac9e5662827ab7997894298a9e"
    "7c6795c88854b83a906da162b58d452d76ae8580789a8e8a5caab04ddb996e3498936b3fa7696fffd4a474961d836751"
    "489182869f5f5243729d7e9458716456",
)
