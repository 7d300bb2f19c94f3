// The clip search of a group, 16 rows at a time: what quantization to integers spends its time on.
//
// src/laq/ranges/common/clip_search.py defines it; every product and sum is rounded as there, in the same order,
// so that both give the same bits. Plain loops over vectors of rows, see lanes.hpp.
#pragma once

#include "convert.hpp"
#include "lanes.hpp"

namespace laq {
namespace {

// Codes up to this many levels have zero points in half steps.
constexpr int kNarrowLevels = 8;
// Log steps between the floor and the largest scale of a row block.
constexpr int kMaxSpan = 240;
// Running sums of an error, one for every eighth column.
constexpr int kSums = 8;

// One group of a tile: values [n][16], and what their squared errors cost.
struct Group {
    const float *values;
    const float *weights;
    int n;
};

// What the search of every width starts from.
struct Range {
    Rows low, span;
    RowInts floor;
};

struct Grid {
    Rows scales, zero_points, error;
    RowInts stored;  // log steps, or the bits of a float16
};

LAQ_INLINE float decoded_step(int32_t step) {
    return as_float(kEighths[step & 7] + (static_cast<uint32_t>(step >> 3) << 23));
}

// The smallest n with 2 ** (n / 8) >= value, which is not negative; below every floor for tiny values and zero.
LAQ_INLINE RowInts steps_up(Rows value) {
    const RowInts bits = row_bits(value), fraction = bits & 0x7fffff;
    RowInts steps = 8 * (bits >> 23) - 8 * 127;
    for (int i = 0; i < 8; i++) {
        steps -= fraction > static_cast<int32_t>(kEighths[i] & 0x7fffff);  // true is -1
    }
    return steps;
}

LAQ_INLINE Range range_of(const Group &group, const float *floors) {
    Rows low = {}, high = {};
    for (int i = 0; i < group.n; i++) {
        const Rows value = load_rows(group.values + kTileRows * i);
        low = smaller(value, low);
        high = larger(value, high);
    }
    return {low, high - low, __builtin_convertvector(load_rows(floors), RowInts)};
}

// Sum over columns of weight x squared distance, in `kSums` running sums that are added by halves.
template <class Distance>
LAQ_INLINE Rows weighted_sum(const Group &group, Distance distance) {
    Rows sums[kSums] = {};
    for (int i = 0; i < group.n; i += kSums) {
#pragma GCC unroll 8
        for (int k = 0; k < kSums; k++) {
            const Rows d = distance(load_rows(group.values + kTileRows * (i + k)));
            sums[k] += d * d * group.weights[i + k];
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) sums[k] += sums[k + 4];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// In steps of the scale, before it is multiplied in.
__attribute__((noinline)) Rows rounding_error(const Group &group, Rows inverse, Rows zero, Rows top) {
    return weighted_sum(group, [=](Rows value) __attribute__((always_inline)) {
        const Rows shifted = value * inverse + zero;
        return nearest(within(shifted, top)) - shifted;
    });
}

// Legal zero points around the exact one; returns how many.
LAQ_INLINE int zero_points_of(const Range &range, int n_levels, Rows (&zeros)[2]) {
    const bool narrow = n_levels <= kNarrowLevels;
    const float n_codes = n_levels == 3 ? 4.0f : static_cast<float>(n_levels);
    const float step = narrow ? 0.5f : 1.0f, lowest = narrow ? (n_codes / 2 - 1) / 2 : 0.0f;
    const float highest = narrow ? lowest + 0.5f * (n_codes - 1) : n_codes - 1;
    const float whole = narrow ? static_cast<float>(static_cast<int>(n_codes / 4)) : 0.0f;
    const Rows top = all_rows(static_cast<float>(n_levels - 1));
    const Rows exact = (range.span > 0.0f ? (0.0f - range.low) / range.span * top : all_rows(whole)) / step;
    const Rows near = nearest(exact), below = near > exact ? near - 1.0f : near;
    const bool both = narrow && n_levels > 3;
    zeros[0] = (both ? below : near) * step;
    zeros[1] = zeros[0] + step;
    for (Rows &zero : zeros) zero = smaller(larger(zero, all_rows(lowest)), all_rows(highest));
    return both ? 2 : 1;
}

// The next log steps that can be stored; `pitch` is a power of two.
LAQ_INLINE RowInts storable(RowInts steps, int pitch) { return (steps + (pitch - 1)) & -pitch; }

// Where trying ends: scales that lie apart are tried from the one above the first to the one below the last.
LAQ_INLINE int end_of_steps(const laq_format &format, int pitch) { return format.last_step + 2 * (pitch - 1); }

// The scale that is tried 2 ** (step / 8) times smaller than the widest, or than the exact one.
template <bool kLog>
LAQ_INLINE void set_scale(RowInts widest, RowInts floor, Rows exact, int step, int pitch, Grid &grid) {
    float scales[kLanes];
    if constexpr (kLog) {
        grid.stored = storable(larger(widest - step, floor), pitch);
        for (int i = 0; i < kLanes; i++) scales[i] = decoded_step(grid.stored[i]);
    } else {
        const Rows wanted = exact * decoded_step(-step);
        const Rows storable = smaller(larger(wanted, all_rows(0x1p-24f)), all_rows(65504.0f));
        int32_t halves[kLanes];
        for (int i = 0; i < kLanes; i++) {
            halves[i] = to_float16(storable[i]);
            scales[i] = from_float16(static_cast<uint16_t>(halves[i]));
        }
        memcpy(&grid.stored, halves, sizeof halves);
    }
    grid.scales = load_rows(scales);
}

LAQ_INLINE Grid absent(const Group &group) {
    const Rows energy = weighted_sum(group, [](Rows value) __attribute__((always_inline)) { return value; });
    return {all_rows(1.0f), Rows{}, energy, RowInts{}};
}

// The scale and zero point of least error for each row.
template <bool kLog>
LAQ_INLINE Grid search(const Group &group, const Range &range, const laq_format &format, int pitch) {
    if (format.n_levels <= 1) return absent(group);
    const Rows top = all_rows(static_cast<float>(format.n_levels - 1)), exact = range.span / top;
    const RowInts widest = smaller(larger(steps_up(exact), range.floor), range.floor + kMaxSpan);
    Rows zeros[2];
    const int n_zeros = zero_points_of(range, format.n_levels, zeros);
    Grid best = {};
    RowInts wins = ~RowInts{};  // the first always does
    for (int step = format.first_step; step < end_of_steps(format, pitch); step += pitch) {
        Grid tried = {};
        set_scale<kLog>(widest, range.floor, exact, step, pitch, tried);
        const Rows inverse = 1.0f / tried.scales, squared = tried.scales * tried.scales;
        for (int i = 0; i < n_zeros; i++) {
            tried.error = rounding_error(group, inverse, zeros[i], top) * squared;
            if (step > format.first_step || i > 0) wins = tried.error < best.error;
            best.scales = wins ? tried.scales : best.scales;
            best.stored = wins ? tried.stored : best.stored;
            best.zero_points = wins ? zeros[i] : best.zero_points;
            best.error = wins ? tried.error : best.error;
        }
    }
    return best;
}

LAQ_INLINE Grid search(const laq_source &source, const Group &group, const Range &range, const laq_format &format) {
    const int pitch = scale_pitch(source.scale_format);
    return is_log(source.scale_format) ? search<true>(group, range, format, pitch)
                                       : search<false>(group, range, format, pitch);
}

// Give the error of column i to those after it, each its share.
LAQ_INLINE void spread_error(Rows error, const float *factor, int i, int n_columns, float *values) {
    for (int k = i + 1; k < n_columns; k++) {
        float *later = values + kTileRows * k;
        store_rows(later, load_rows(later) - error * factor[k]);
    }
}

}  // namespace
}  // namespace laq
