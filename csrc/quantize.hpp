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

constexpr int kParts = kTileRows / kLanes;

// What the search of every format starts from, of `kLanes` rows.
struct Start {
    Group group;
    int64_t row_block;
    Range range;
    Powers powers;
};

LAQ_INLINE Start start_of(const laq_source &source, const Group &group, int64_t row_block, const float *floors) {
    return {group, row_block, range_of(group, floors), powers_of(source, group, floors)};
}

// Called from several places: inlined it would be compiled as often.
__attribute__((noinline)) Grid find(const laq_source &source, const Start &start, const laq_format &format) {
    if (is_trellis(format.tag)) return predict(source, start.powers, format);
    if (is_integer(format.tag)) return search(source, start.group, start.range, format);
    return search_table(source, start.group, start.range.floor, entries_of(source, format, start.row_block), format);
}

// Scales of a tile that are too far below its largest for LOG4 are searched again from a floor within reach.
inline void within_span(const laq_source &source, const Start *starts, const float *floors, const laq_format &format,
                        Grid *grids) {
    int32_t highest = grids[0].stored[0];
    for (int row = 0; row < kTileRows; row++) {
        const int32_t stored = grids[row / kLanes].stored[row % kLanes];
        highest = stored > highest ? stored : highest;
    }
    const int32_t lowest = highest - kLog4Span;
    float raised[kTileRows];
    for (int row = 0; row < kTileRows; row++) {
        raised[row] = floors[row] > static_cast<float>(lowest) ? floors[row] : static_cast<float>(lowest);
    }
    for (int part = 0; part < kParts; part++) {
        Grid &grid = grids[part];
        bool any = false;
        for (int i = 0; i < kLanes; i++) any = any || grid.stored[i] < lowest;
        if (!any) continue;
        const Start &start = starts[part];
        const Grid again = find(source, start_of(source, start.group, start.row_block, raised + part * kLanes), format);
        const RowInts below = grid.stored < lowest;
        grid.scales = below ? again.scales : grid.scales;
        grid.zero_points = below ? again.zero_points : grid.zero_points;
        grid.error = below ? again.error : grid.error;
        grid.stored = below ? again.stored : grid.stored;
    }
}

// The scales of a tile's rows at one format.
LAQ_INLINE void find_tile(const laq_source &source, const Start *starts, const float *floors, const laq_format &format,
                          Grid *grids) {
    for (int part = 0; part < kParts; part++) grids[part] = find(source, starts[part], format);
    if (source.scale_format == LAQ_SCALES_LOG4) within_span(source, starts, floors, format, grids);
}

inline void errors_kernel(const laq_source &source, int64_t first, int64_t last, float *errors) {
    const int64_t n_groups = source.n_columns / source.group_size;
    alignas(64) float values[kTileRows * 128];
    for (int64_t at = 0; at < n_groups; at++) {
        for (int64_t row = kTileRows * first; row < kTileRows * last; row += kTileRows) {
            copy_tile(source, at, row, values);
            const float *floors = source.floors + row;
            Start starts[kParts];
            for (int part = 0; part < kParts; part++) {
                const float *weights = source.column_weights + at * source.group_size;
                const Group group{values + part * kLanes, weights, source.group_size};
                starts[part] = start_of(source, group, row / kTileRows, floors + part * kLanes);
            }
            for (int i = 0; i < source.n_formats; i++) {
                Grid grids[kParts];
                find_tile(source, starts, floors, source.formats[i], grids);
                float *out = errors + (i * n_groups + at) * source.n_rows + row;
                for (int part = 0; part < kParts; part++) store_rows(out + part * kLanes, grids[part].error);
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
        const float *floors = source.floors + kTileRows * block;
        copy_tile(source, 0, kTileRows * block, values);
        Start starts[kParts];
        for (int part = 0; part < kParts; part++) {
            const Group group{values + part * kLanes, source.column_weights, source.group_size};
            starts[part] = start_of(source, group, block, floors + part * kLanes);
        }
        Grid grids[kParts];
        find_tile(source, starts, floors, format, grids);
        for (int part = 0; part < kParts; part++) {
            const int64_t row = kTileRows * block + part * kLanes;
            const Grid &grid = grids[part];
            store_rows(to.zero_points + row, grid.zero_points);
            store_rows(scales + part * kLanes, grid.scales);
            int16_t stored[kLanes];
            for (int i = 0; i < kLanes; i++) stored[i] = static_cast<int16_t>(grid.stored[i]);
            memcpy(to.scales + row, stored, sizeof stored);
            if (!trellis) round_columns(source, to, row, grid, format, values + part * kLanes);
        }
        if (trellis) round_tile(source, to, kTileRows * block, width_of(format.tag), scales, values);
    }
}

}  // namespace
}  // namespace laq
