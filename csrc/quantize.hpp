// What a tier offers to quantizers: errors of all formats, and the rounding of a group.
//
// src/laq/quantizers/common/torch_engine.py defines both.
#pragma once

#include "table_search.hpp"
#include "trellis_search.hpp"

namespace laq {
namespace {

// One group of 16 rows, side by side: reading it in place would touch a page for every column.
LAQ_INLINE void copy_tile(const laq_source &source, int64_t group, int64_t row, float *values) {
    const float *from = source.values + group * source.group_size * source.stride + row;
    for (int i = 0; i < source.group_size; i++) {
        memcpy(values + kTileRows * i, from + i * source.stride, sizeof(float) * kTileRows);
    }
}

// The scale, and the zero point of integers, of least error for each row of a group.
LAQ_INLINE Grid search(const laq_source &source, const Group &group, int64_t row, const laq_format &format) {
    const float *floors = source.floors + row;
    if (is_trellis(format.tag)) return predict(source, powers_of(source, group, floors), format);
    if (!is_table(format.tag)) return search(source, group, range_of(group, floors), format);
    return search_table(source, group, floors, entries_of(source, format, row / kTileRows), format);
}

inline void errors_kernel(const laq_source &source, int64_t first, int64_t last, float *errors) {
    const int64_t n_groups = source.n_columns / source.group_size;
    alignas(64) float values[kTileRows * 128];
    for (int64_t at = 0; at < n_groups; at++) {
        for (int64_t row = kTileRows * first; row < kTileRows * last; row += kTileRows) {
            copy_tile(source, at, row, values);
            for (int part = 0; part < kTileRows; part += kLanes) {
                const Group group{values + part, source.column_weights + at * source.group_size, source.group_size};
                const float *floors = source.floors + row + part;
                const Range range = range_of(group, floors);
                const Powers powers = powers_of(source, group, floors);
                for (int i = 0; i < source.n_formats; i++) {
                    const laq_format &format = source.formats[i];
                    const Grid found = is_trellis(format.tag)   ? predict(source, powers, format)
                                       : is_integer(format.tag) ? search(source, group, range, format)
                                                                : search(source, group, row + part, format);
                    store_rows(errors + (i * n_groups + at) * source.n_rows + row + part, found.error);
                }
            }
        }
    }
}

// Round columns in order; with a factor each one's error goes to those that follow. `nearest_of` takes values in steps of
// the scale. Changes `values`.
template <class Nearest>
LAQ_INLINE void round_columns(const laq_source &source, const laq_rounding &to, int64_t row, Rows scales,
                              Nearest nearest_of, float *values) {
    const Rows inverse = 1.0f / scales;
    for (int i = 0; i < source.group_size; i++) {
        const Rows value = load_rows(values + kTileRows * i);
        const Rounded rounded = nearest_of(value * inverse);
        const RowBytes bytes = __builtin_convertvector(__builtin_convertvector(rounded.code, RowInts), RowBytes);
        memcpy(to.codes + i * source.n_rows + row, &bytes, sizeof bytes);
        if (to.factor == nullptr) continue;
        const float *factor = to.factor + i * source.group_size;
        const Rows error = (value - rounded.level * scales) * (1.0f / factor[i]);
        store_rows(to.errors + i * source.n_rows + row, error);
        spread_error(error, factor, i, source.group_size, values);
    }
}

LAQ_INLINE void round_columns(const laq_source &source, const laq_rounding &to, int64_t row, const Grid &grid,
                              const laq_format &format, float *values) {
    if (is_table(format.tag)) {
        const Entries entries = entries_of(source, format, row / kTileRows);
        const auto of_table = [&](Rows scaled) __attribute__((always_inline)) { return nearest_entry(entries, scaled); };
        return round_columns(source, to, row, grid.scales, of_table, values);
    }
    const Rows top = all_rows(static_cast<float>(format.n_levels - 1));
    const auto of_integers = [&](Rows scaled) __attribute__((always_inline)) {
        const Rows code = nearest(within(scaled + grid.zero_points, top));
        return Rounded{code, code - grid.zero_points};
    };
    round_columns(source, to, row, grid.scales, of_integers, values);
}

inline void rounding_kernel(const laq_source &source, const laq_rounding &to, int64_t first, int64_t last) {
    alignas(64) float values[kTileRows * 128], scales[kTileRows];
    for (int64_t block = first; block < last; block++) {
        const laq_format &format = source.formats[to.choices[block]];
        const bool trellis = is_trellis(format.tag);
        copy_tile(source, 0, kTileRows * block, values);
        for (int part = 0; part < kTileRows; part += kLanes) {
            const int64_t row = kTileRows * block + part;
            const Group group{values + part, source.column_weights, source.group_size};
            const Grid grid = search(source, group, row, format);
            store_rows(to.zero_points + row, grid.zero_points);
            store_rows(scales + part, grid.scales);
            int16_t stored[kLanes];
            for (int i = 0; i < kLanes; i++) stored[i] = static_cast<int16_t>(grid.stored[i]);
            memcpy(to.scales + row, stored, sizeof stored);
            if (!trellis) round_columns(source, to, row, grid, format, values + part);
        }
        if (trellis) round_tile(source, to, kTileRows * block, width_of(format.tag), scales, values);
    }
}

}  // namespace
}  // namespace laq
