"""The C++ kernels behind csrc/laq.h, through ctypes.

A machine without them (no compiler at installation, an unknown system) uses `torch_decode` instead; `status`
says which and why. `LAQ_KERNELS` names a tier, `torch` for none, or the file of another build.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from laq.core.errors import FormatError, RequestError
from laq.core.scheme import ScaleFormat
from laq.core.threads import MAX_THREADS, usable_threads

ABI_VERSION = 8
ENVIRONMENT = "LAQ_KERNELS"
WITHOUT = "torch"
"""Value of LAQ_KERNELS that leaves the native kernels alone."""

FLOAT32, BFLOAT16, FLOAT16 = range(3)
SCALES_FLOAT16, SCALES_LOG8, SCALES_LOG4, SCALES_E8M0 = range(4)
SCALE_FORMATS = {
    ScaleFormat.FLOAT16: SCALES_FLOAT16,
    ScaleFormat.LOG8: SCALES_LOG8,
    ScaleFormat.LOG4: SCALES_LOG4,
    ScaleFormat.E8M0: SCALES_E8M0,
}
PROBLEMS = {
    1: "a size is out of range",
    2: "a tile's tag, column group or order is out of range",
    3: "payload or zero points are not as long as the tile table says",
    4: "a scale is out of range",
    5: "a permutation does not hold every index once",
    6: "arguments do not fit together",
    7: "out of memory",
    8: "the row or column of an outlier is out of range",
}


class Matrix(ctypes.Structure):
    """`laq_matrix`: sizes of a packed matrix and addresses of its sections."""

    _fields_ = (
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("group_size", ctypes.c_int32),
        ("scale_format", ctypes.c_int32),
        ("n_tiles", ctypes.c_int64),
        ("payload_bytes", ctypes.c_int64),
        ("zero_point_bytes", ctypes.c_int64),
        ("payload", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("octaves", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("tile_starts", ctypes.c_void_p),
        ("zero_offsets", ctypes.c_void_p),
        ("row_offsets", ctypes.c_void_p),
        ("row_permutation", ctypes.c_void_p),
        ("column_permutation", ctypes.c_void_p),
        ("row_index_bytes", ctypes.c_int32),
        ("column_index_bytes", ctypes.c_int32),
        ("palettes", ctypes.c_void_p),
    )


class Outliers(ctypes.Structure):
    """`laq_outliers`: a matrix of few elements, row by row."""

    _fields_ = (
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("column_bytes", ctypes.c_int32),
    )


class Format(ctypes.Structure):
    """`laq_format`: a number format, and by how much its scale is tried smaller."""

    _fields_ = (
        ("tag", ctypes.c_int32),
        ("n_levels", ctypes.c_int32),
        ("first_step", ctypes.c_int32),
        ("last_step", ctypes.c_int32),
        ("terms", ctypes.c_float * 3),
    )


class Source(ctypes.Structure):
    """`laq_source`: sizes and addresses of a float matrix that is to be rounded."""

    _fields_ = (
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("group_size", ctypes.c_int32),
        ("scale_format", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("column_weights", ctypes.c_void_p),
        ("floors", ctypes.c_void_p),
        ("formats", ctypes.POINTER(Format)),
        ("n_formats", ctypes.c_int32),
        ("palettes", ctypes.c_void_p),
        ("palette_stride", ctypes.c_int64),
    )


class Rounding(ctypes.Structure):
    """`laq_rounding`: how one group of columns is rounded, and where the result goes."""

    _fields_ = (
        ("choices", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
    )


class Tiles(ctypes.Structure):
    """`laq_tiles`: where the codes of tiles lie, as rows of bytes and packed."""

    _fields_ = (
        ("n_tiles", ctypes.c_int64),
        ("group_size", ctypes.c_int32),
        ("bits", ctypes.c_void_p),
        ("code_starts", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("payload_starts", ctypes.c_void_p),
        ("palettes", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What runs packed matrices on this machine.

    Parameters
    ----------
    tier : str
        Instruction set in use; empty without native kernels.
    tiers : tuple of str
        Those that this machine can run, slowest first.
    reason : str
        Why there are none, or why none is used.
    """

    tier: str
    tiers: tuple[str, ...]
    reason: str


class Library:
    """The functions of csrc/laq.h with their types; see there for shapes."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        self._functions = functions
        for name in ("laq_tier", "laq_current_tier"):
            getattr(functions, name).restype = ctypes.c_char_p
        functions.laq_tier.argtypes = (ctypes.c_int32,)
        functions.laq_use_tier.argtypes = (ctypes.c_char_p,)
        functions.laq_set_threads.argtypes = (ctypes.c_int32,)
        functions.laq_check.argtypes = (ctypes.POINTER(Matrix),)
        self.linear = functions.laq_linear
        self.linear.argtypes = (
            ctypes.POINTER(Matrix),
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int32,
        )
        self.rows = functions.laq_rows
        self.rows.argtypes = (
            ctypes.POINTER(Matrix),
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int32,
        )
        self.outlier_product = functions.laq_outlier_product
        self.outlier_product.argtypes = (
            ctypes.POINTER(Outliers),
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        )
        self.run = functions.laq_run
        self.run.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        functions.laq_errors.argtypes = (ctypes.POINTER(Source), ctypes.c_void_p)
        functions.laq_round.argtypes = (ctypes.POINTER(Source), ctypes.POINTER(Rounding))
        for name in ("laq_pack", "laq_unpack"):
            getattr(functions, name).argtypes = (ctypes.POINTER(Tiles), ctypes.c_void_p, ctypes.c_void_p)
        functions.laq_read.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        functions.laq_read.restype = ctypes.c_uint64

    @property
    def abi_version(self) -> int:
        """Version of the border; this file speaks `ABI_VERSION`."""
        return int(self._functions.laq_abi_version())

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the instruction sets that this machine can run, slowest first."""
        names: list[str] = []
        while (name := self._functions.laq_tier(len(names))) is not None:
            names.append(name.decode())
        return tuple(names)

    @property
    def tier(self) -> str:
        """The instruction set in use."""
        name: bytes = self._functions.laq_current_tier()
        return name.decode()

    def use_tier(self, name: str) -> None:
        """Use an instruction set for all further calls.

        Raises
        ------
        RequestError
            If this machine cannot run it.
        """
        if self._functions.laq_use_tier(name.encode()):
            raise RequestError(
                f"{ENVIRONMENT}={name}: not an instruction set of this machine",
                hint=f"choose one of {', '.join((WITHOUT, *self.tiers))}",
            )

    @property
    def threads(self) -> int:
        """Threads that share one call."""
        return int(self._functions.laq_threads())

    def set_threads(self, n_threads: int) -> None:
        """Let this many threads share one call."""
        raise_problem(self._functions.laq_set_threads(n_threads), name="threads")

    def check(self, matrix: Matrix, *, name: str) -> None:
        """Check all that the kernels rely on.

        Raises
        ------
        FormatError
            If a section is out of range, with the matrix's `name`.
        """
        raise_problem(self._functions.laq_check(ctypes.byref(matrix)), name=name)

    def errors(self, source: Source, address: int) -> None:
        """Write the least error of every group at every format; float32 [n_formats, n_groups, n_rows]."""
        code = self._functions.laq_errors(ctypes.byref(source), address)
        raise_problem(code, name="matrix to be searched")

    def round(self, source: Source, rounding: Rounding) -> None:
        """Search the scales of one group of columns and round it."""
        code = self._functions.laq_round(ctypes.byref(source), ctypes.byref(rounding))
        raise_problem(code, name="group to be rounded")

    def pack(self, tiles: Tiles, codes: int, payload: int) -> None:
        """Write the payload of tiles from their codes, given by their addresses."""
        raise_problem(self._functions.laq_pack(ctypes.byref(tiles), codes, payload), name="tiles")

    def unpack(self, tiles: Tiles, payload: int, codes: int) -> None:
        """Write the codes of tiles from their payload."""
        raise_problem(self._functions.laq_unpack(ctypes.byref(tiles), payload, codes), name="tiles")

    def read(self, address: int, size_bytes: int) -> int:
        """Read memory as fast as all threads can; returns the xor of the first 8 bytes of every 64."""
        return int(self._functions.laq_read(address, size_bytes))


def raise_problem(code: int, *, name: str) -> None:
    """Raise what a return code says.

    Raises
    ------
    MemoryError
        If memory ran out.
    RequestError
        If what was asked for cannot be.
    FormatError
        If a matrix is damaged.
    """
    if code == 0:
        return
    problem = PROBLEMS.get(code, f"unknown problem {code}")
    if problem == PROBLEMS[7]:
        raise MemoryError(f"{name}: {problem}")
    if problem == PROBLEMS[6]:
        hint = f"activation_bits is 8 or 16, threads are 1 to {MAX_THREADS}"
        raise RequestError(f"{name}: {problem}", hint=hint)
    raise FormatError(f"{name}: {problem}", hint="the archive is damaged: copy or quantize it again")


def formats(several: Sequence[Format]) -> ctypes.Array[Format]:
    """Return formats side by side, as `Source` takes them."""
    return (Format * len(several))(*several)


def matrices(several: Sequence[Matrix]) -> ctypes.Array[Matrix]:
    """Return matrices side by side, as `Library.linear` takes them."""
    return (Matrix * len(several))(*several)


def with_columns_of(matrix: Matrix, other: Matrix) -> Matrix:
    """Return a copy that reads its order of columns, which is equal, where another has it."""
    copy = Matrix.from_buffer_copy(matrix)
    copy.column_permutation = other.column_permutation
    return copy


def addresses(several: Sequence[int | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Return addresses side by side; None is NULL."""
    return (ctypes.c_void_p * len(several))(*several)


@cache
def _loaded(build: str = "") -> tuple[Library | None, str]:
    """Load a build, or the one that was installed; the reason if there is none."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    package = sys.modules[__package__]
    installed = (Path(folder) / f"liblaq_kernels.{suffix}" for folder in package.__path__)
    found = [path for path in ([Path(build)] if build else installed) if path.is_file()]
    if not found and build:
        return None, "no such file"
    if not found:
        return None, "not built when laq was installed: no C++17 compiler was found"
    try:
        library = Library(found[0])
    except (OSError, AttributeError) as error:
        return None, f"{found[0].name} cannot be loaded: {error}"
    if library.abi_version != ABI_VERSION:
        return None, f"{found[0].name} is of another version: install laq again"
    return library, ""


@cache
def library() -> Library | None:
    """Return the native kernels, set to the tier that LAQ_KERNELS names; None without them.

    Raises
    ------
    RequestError
        If LAQ_KERNELS names what this machine cannot run.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted == WITHOUT:
        return None
    is_file = os.sep in wanted
    found, reason = _loaded(wanted if is_file else "")
    if wanted and not (is_file and found is not None):
        if found is None:
            raise RequestError(f"{ENVIRONMENT}={wanted}: {reason}", hint=f"unset {ENVIRONMENT}")
        found.use_tier(wanted)
    if found is not None:
        found.set_threads(usable_threads())
    return found


def status() -> Status:
    """Say what runs packed matrices here."""
    found, reason = _loaded()
    tiers = () if found is None else found.tiers
    used = library()
    if used is None:
        return Status("", tiers, reason or f"{ENVIRONMENT}={WITHOUT}")
    return Status(used.tier, tiers, "")
