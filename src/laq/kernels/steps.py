"""Recorded operations as csrc/laq.h lays them out; see there for what each kind computes."""

from __future__ import annotations

import ctypes
from enum import IntEnum

from laq.kernels.native import Matrix

INT64, BOOL = 3, 4
"""Types of operands beside the floats of `native`."""

N_AXES = 4


class Kind(IntEnum):
    """What a step computes; the order is that of csrc/laq.h."""

    COPY = 0
    NEGATE = 1
    ABSOLUTE = 2
    SQUARE = 3
    SQRT = 4
    RSQRT = 5
    RECIPROCAL = 6
    EXP = 7
    COS = 8
    SIN = 9
    TANH = 10
    SIGMOID = 11
    SILU = 12
    GELU = 13
    GELU_TANH = 14
    RELU = 15
    NOT = 16
    ADD = 17
    SUBTRACT = 18
    MULTIPLY = 19
    DIVIDE = 20
    POWER = 21
    MINIMUM = 22
    MAXIMUM = 23
    LESS = 24
    LESS_EQUAL = 25
    EQUAL = 26
    NOT_EQUAL = 27
    AND = 28
    OR = 29
    WHERE = 30
    SUM = 31
    MEAN = 32
    SOFTMAX = 33
    LAYER_NORM = 34
    COPY_AT = 35
    GATHER = 36
    MATMUL = 37
    ATTENTION = 38
    LINEAR = 39
    ROWS = 40
    OUTLIERS = 41


class Step(ctypes.Structure):
    """`laq_step`."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("types", ctypes.c_int32 * 4),
        ("sizes", ctypes.c_int64 * N_AXES),
        ("strides", (ctypes.c_int64 * N_AXES) * 4),
        ("data", ctypes.c_void_p * 4),
        ("number", ctypes.c_double),
        ("details", ctypes.c_void_p),
    )


class Attention(ctypes.Structure):
    """`laq_attention`."""

    _fields_ = (
        ("width", ctypes.c_int64),
        ("value_width", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_type", ctypes.c_int32),
        ("mask_strides", ctypes.c_int64 * N_AXES),
        ("scale", ctypes.c_float),
    )


class Product(ctypes.Structure):
    """`laq_product`."""

    _fields_ = (
        ("matrices", ctypes.POINTER(Matrix)),
        ("n_matrices", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("x", ctypes.c_void_p),
        ("n_inputs", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("activation_bits", ctypes.c_int32),
    )


class Lookup(ctypes.Structure):
    """`laq_lookup`."""

    _fields_ = (
        ("matrix", ctypes.POINTER(Matrix)),
        ("row_index", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )
