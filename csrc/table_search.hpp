// Codes that stand for entries of a table: the scale of least error, and the nearest entry.
//
// src/laq/quantizers/common/table.py defines them; every product and sum is rounded as there, in the same order.
#pragma once

#include "search.hpp"
#include "tables.hpp"

namespace laq {
namespace {

// What codes stand for, in steps of the scale.
struct Entries {
    float values[16];
    int n;
    float largest;
};

inline Entries entries_of(const laq_source &source, const laq_format &format, int64_t row_block) {
    const uint8_t *bytes = table_of(format.tag, source.palettes + row_block * source.palette_stride);
    Entries r = {{}, format.n_levels, 1.0f};
    int largest = 1;
    for (int i = 0; i < r.n; i++) {
        const int level = bytes[i] - kMiddle, size = level < 0 ? -level : level;
        r.values[i] = static_cast<float>(level);
        largest = size > largest ? size : largest;
    }
    r.largest = static_cast<float>(largest);
    return r;
}

// A code and what it stands for, relative to zero.
struct Rounded {
    Rows code, level;
};

// The first of the nearest entries.
LAQ_INLINE Rounded nearest_entry(const Entries &entries, Rows value) {
    Rounded r = {Rows{}, all_rows(entries.values[0])};
    Rows least = magnitude(value - r.level);
    for (int i = 1; i < entries.n; i++) {
        const Rows other = magnitude(value - entries.values[i]);
        const RowInts less = other < least;
        r.code = less ? all_rows(static_cast<float>(i)) : r.code;
        r.level = less ? all_rows(entries.values[i]) : r.level;
        least = less ? other : least;
    }
    return r;
}

__attribute__((noinline)) Rows table_error(const Group &group, const Entries &entries, Rows inverse) {
    return weighted_sum(group, [&](Rows value) __attribute__((always_inline)) {
        const Rows scaled = value * inverse;
        Rows least = magnitude(scaled - entries.values[0]);
        for (int i = 1; i < entries.n; i++) least = smaller(magnitude(scaled - entries.values[i]), least);
        return least;
    });
}

// The scale of least error for each row.
template <bool kLog>
LAQ_INLINE Grid search_table(const Group &group, RowInts floor, const Entries &entries, const laq_format &format,
                             int pitch) {
    Rows largest = {};
    for (int i = 0; i < group.n; i++) largest = larger(largest, magnitude(load_rows(group.values + kTileRows * i)));
    const Rows exact = largest / entries.largest;
    const RowInts top = floor + kMaxSpan;
    const RowInts widest = smaller(larger(steps_up(exact), floor), top);
    Grid best = {};
    RowInts wins = ~RowInts{};  // the first always does
    for (int step = format.first_step; step < end_of_steps(format, pitch); step += pitch) {
        Grid tried = {};
        if constexpr (kLog) set_scale<true>(smaller(widest - step, top), floor, exact, 0, pitch, tried);
        else set_scale<false>(widest, floor, exact, step, pitch, tried);
        tried.error = table_error(group, entries, 1.0f / tried.scales) * (tried.scales * tried.scales);
        if (step > format.first_step) wins = tried.error < best.error;
        best.scales = wins ? tried.scales : best.scales;
        best.stored = wins ? tried.stored : best.stored;
        best.error = wins ? tried.error : best.error;
    }
    best.zero_points = all_rows(static_cast<float>(kMiddle));
    return best;
}

LAQ_INLINE Grid search_table(const laq_source &source, const Group &group, RowInts floor, const Entries &entries,
                             const laq_format &format) {
    const int pitch = scale_pitch(source.scale_format);
    return is_log(source.scale_format) ? search_table<true>(group, floor, entries, format, pitch)
                                       : search_table<false>(group, floor, entries, format, pitch);
}

}  // namespace
}  // namespace laq
