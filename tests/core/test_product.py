"""Product codes: sizes are known before, sums of entries are what is read, damage is named."""

import re

import numpy as np
import pytest

from laq.core.product import PRODUCT_CODES, ProductCode, ProductTensor, product_code, product_problems
from laq.core.product import product_sections as sections_of

SHAPE = (20, 30)


EIGHT = ProductCode(8, 2)


def tensor(code=EIGHT, *, order=True):
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, 256, shape).astype(dtype)
        if dtype == np.uint8
        else generator.standard_normal(shape).astype(dtype)
        for _, dtype, shape in sections_of(*SHAPE, code)
    ]
    columns = generator.permutation(SHAPE[1]).astype(np.uint16) if order else None
    return ProductTensor(*SHAPE, *arrays, columns)


def test_values_are_sums_of_entries_in_the_source_order_of_columns():
    stored = tensor()
    values = stored.dequantize()
    assert values.shape == SHAPE
    row, column = 7, 21
    where = int(np.flatnonzero(stored.column_permutation == column)[0])
    entries = [float(stored.codebooks[k, stored.codes[k, row, where // 8], where % 8]) for k in (0, 1)]
    assert values[row, column] == pytest.approx(sum(entries) * float(stored.row_scales[row]), rel=1e-6)


@pytest.mark.parametrize("code", PRODUCT_CODES, ids=lambda code: code.name)
def test_a_code_is_found_by_its_name_and_has_the_sizes_that_are_priced(code):
    assert product_code(code.name) == code
    stored = tensor(code, order=False)
    found = [(name, array.dtype, array.shape) for name, array in stored.sections().items()]
    assert found == sections_of(*SHAPE, code)
    n_codes = code.n_levels * SHAPE[0] * -(-SHAPE[1] // code.width)
    assert stored.size_bytes == n_codes + 2 * 256 * code.width * code.n_levels + 2 * SHAPE[0]


@pytest.mark.parametrize("name", ["product5x1", "product4x9", "product4", "int4", ""])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match="no product code"):
        product_code(name)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("codes", np.zeros((2, 20, 3), np.uint8), r"product_codes has shape .*expected \(2, 20, 4\)"),
        ("codebooks", np.full((2, 256, 8), np.nan, np.float16), "not finite"),
        ("row_scales", np.full(20, np.inf, np.float16), "not finite"),
        ("column_permutation", np.zeros(30, np.uint16), "each of 30 indices once"),
    ],
)
def test_damage_is_named(field, value, problem):
    from dataclasses import replace

    assert product_problems(tensor(), ProductCode(8, 2)) == []
    (found,) = product_problems(replace(tensor(), **{field: value}), ProductCode(8, 2))
    assert re.search(problem, found)
