// Trellis codes of a group: the scale by prediction, the codes by Viterbi's algorithm, 16 rows of a column at a time.
//
// src/laq/quantizers/common/trellis.py defines them; every product and sum is rounded as there, in the same order.
#pragma once

#include "search.hpp"
#include "trellis_tables.hpp"

namespace laq {
namespace {

constexpr int kChains = 4, kEntries = 256;
// Cost of a path that does not start at the state given.
constexpr float kUnreached = 1e30f;

// Sums over a group of powers of its values, in units of a reference scale: all that predictions need of it.
struct Powers {
    Rows exact, reference, zeroth, fourth, sixth;
    RowInts floor, widest;
};

LAQ_INLINE Powers powers_of(const laq_source &source, const Group &group, const float *floors) {
    Powers r;
    Rows largest = {};
    for (int i = 0; i < group.n; i++) largest = larger(largest, magnitude(load_rows(group.values + kTileRows * i)));
    r.exact = largest / 127.0f;
    r.floor = __builtin_convertvector(load_rows(floors), RowInts);
    r.widest = smaller(larger(steps_up(r.exact), r.floor), r.floor + kMaxSpan);
    if (is_log(source.scale_format)) {
        const RowInts steps = storable(r.widest, scale_pitch(source.scale_format));
        for (int i = 0; i < kLanes; i++) r.reference[i] = decoded_step(steps[i]);
    } else {
        r.reference = larger(r.exact, all_rows(0x1p-24f));
    }
    const Rows inverse = 1.0f / r.reference;
    r.zeroth = weighted_sum(group, [](Rows) __attribute__((always_inline)) { return all_rows(1.0f); });
    r.fourth = weighted_sum(group, [=](Rows value) __attribute__((always_inline)) {
        const Rows v = value * inverse;
        return v * v;
    });
    r.sixth = weighted_sum(group, [=](Rows value) __attribute__((always_inline)) {
        const Rows v = value * inverse;
        return v * v * v;
    });
    return r;
}

// The scale of least predicted error for each row: a s^2 + c v^4 / s^2 + d v^6 / s^4 for a value v.
template <bool kLog>
LAQ_INLINE Grid predict(const Powers &powers, const laq_format &format, int pitch) {
    const RowInts top = powers.floor + kMaxSpan;
    const Rows constant = format.terms[0] * powers.zeroth, fourth = format.terms[1] * powers.fourth;
    const Rows sixth = format.terms[2] * powers.sixth;
    Grid best = {};
    RowInts wins = ~RowInts{};  // the first always does
    for (int step = format.first_step; step < end_of_steps(format, pitch); step += pitch) {
        Grid tried = {};
        if constexpr (kLog) {
            set_scale<true>(smaller(powers.widest - step, top), powers.floor, powers.exact, 0, pitch, tried);
        } else {
            set_scale<false>(powers.widest, powers.floor, powers.reference, step, pitch, tried);
        }
        Rows ratio = tried.scales / powers.reference;
        ratio = ratio * ratio;
        const Rows inverse = 1.0f / ratio;
        tried.error = (sixth * inverse + fourth) * inverse + constant * ratio;
        if (step > format.first_step) wins = tried.error < best.error;
        best.scales = wins ? tried.scales : best.scales;
        best.stored = wins ? tried.stored : best.stored;
        best.error = wins ? tried.error : best.error;
    }
    best.zero_points = all_rows(static_cast<float>(kMiddle));
    best.error = best.error * (powers.reference * powers.reference);
    return best;
}

LAQ_INLINE Grid predict(const laq_source &source, const Powers &powers, const laq_format &format) {
    const int pitch = scale_pitch(source.scale_format);
    return is_log(source.scale_format) ? predict<true>(powers, format, pitch) : predict<false>(powers, format, pitch);
}

// The least cost of each state over the oldest codes that lead to it, and the first such code; tried[code][state].
template <int kStates>
LAQ_INLINE void least_costs(const float *tried, float *costs, uint8_t *oldest) {
    constexpr int n_codes = kEntries / kStates;
    if constexpr (kStates >= kLanes) {
        for (int s = 0; s < kStates; s += kLanes) {
            Rows least = load_rows(tried + s);
            RowInts first = {};
#pragma GCC unroll 16
            for (int code = 1; code < n_codes; code++) {
                const Rows other = load_rows(tried + code * kStates + s);
                const RowInts less = other < least;
                first = less ? all_rows(code) : first;
                least = less ? other : least;
            }
            store_rows(costs + s, least);
            const RowBytes bytes = __builtin_convertvector(first, RowBytes);
            memcpy(oldest + s, &bytes, sizeof bytes);
        }
    } else {  // several codes side by side, each in a run of states
        constexpr int n_runs = kLanes / kStates;
        Rows least = load_rows(tried);
        RowInts first = {};
#pragma GCC unroll 16
        for (int at = 1; at < n_codes / n_runs; at++) {
            const Rows other = load_rows(tried + at * kLanes);
            const RowInts less = other < least;
            first = less ? all_rows(at) : first;
            least = less ? other : least;
        }
        for (int s = 0; s < kStates; s++) {
            float best = least[s];
            int code = first[s] * n_runs;
            for (int run = 1; run < n_runs; run++) {
                const float other = least[run * kStates + s];
                const int its = first[run * kStates + s] * n_runs + run;
                const bool wins = other < best || (other == best && its < code);
                code = wins ? its : code;
                best = wins ? other : best;
            }
            costs[s] = best;
            oldest[s] = static_cast<uint8_t>(code);
        }
    }
}

// Windows of the first 16 of n values, in steps of the scale; the state after them.
template <int B>
int cheapest_path(const float *values, int n, int state, const float *table, uint8_t *windows) {
    constexpr int n_states = kEntries >> B, n_codes = 1 << B;
    alignas(64) float costs[n_states], so_far[kEntries], tried[kEntries];
    alignas(64) uint8_t oldest[2 * kTileRows][n_states];
    for (int s = 0; s < n_states; s++) costs[s] = kUnreached;
    costs[state] = 0.0f;
    for (int t = 0; t < n; t++) {
        for (int before = 0; before < n_states; before++) {
            for (int code = 0; code < n_codes; code++) so_far[before * n_codes + code] = costs[before];
        }
        for (int window = 0; window < kEntries; window += kLanes) {
            const Rows distance = values[t] - load_rows(table + window);
            store_rows(tried + window, distance * distance + load_rows(so_far + window));
        }
        least_costs<n_states>(tried, costs, oldest[t]);
    }
    int last = 0;
    for (int s = 1; s < n_states; s++) last = costs[s] < costs[last] ? s : last;
    int after = last;
    for (int t = n - 1; t >= 0; t--) {
        if (t == kTileRows - 1) after = last;
        const int window = last | oldest[t][last] << (8 - B);
        if (t < kTileRows) windows[t] = static_cast<uint8_t>(window);
        last = window >> B;
    }
    return after;
}

LAQ_INLINE int cheapest_path(int bits, const float *values, int n, int state, const float *table, uint8_t *windows) {
    switch (bits) {
        case 1: return cheapest_path<1>(values, n, state, table, windows);
        case 2: return cheapest_path<2>(values, n, state, table, windows);
        case 3: return cheapest_path<3>(values, n, state, table, windows);
        case 4: return cheapest_path<4>(values, n, state, table, windows);
        case 5: return cheapest_path<5>(values, n, state, table, windows);
        default: return cheapest_path<6>(values, n, state, table, windows);
    }
}

// Encode the columns of a tile in order, each with the next of its chain in view. Changes `values`.
inline void round_tile(const laq_source &source, const laq_rounding &to, int64_t row, int bits, const float *scales,
                       float *values) {
    alignas(64) float table[kEntries], path[2 * kTileRows], errors[kTileRows], inverse[kTileRows];
    uint8_t windows[kTileRows];
    int states[kChains] = {};
    for (int i = 0; i < kEntries; i++) table[i] = static_cast<float>(kTrellis[bits][i]) - kMiddle;
    for (int r = 0; r < kTileRows; r++) inverse[r] = 1.0f / scales[r];
    const int group_size = source.group_size;
    for (int i = 0; i < group_size; i++) {
        const int n_columns = i + kChains < group_size ? 2 : 1;
        for (int r = 0; r < n_columns * kTileRows; r++) {
            const int column = i + kChains * (r / kTileRows), lane = r % kTileRows;
            path[r] = values[kTileRows * column + lane] * inverse[lane];
        }
        int &state = states[i % kChains];
        state = cheapest_path(bits, path, n_columns * kTileRows, state, table, windows);
        uint8_t *codes = to.codes + i * source.n_rows + row;
        for (int r = 0; r < kTileRows; r++) codes[r] = static_cast<uint8_t>(windows[r] & ((1 << bits) - 1));
        if (to.factor == nullptr) continue;
        const float *factor = to.factor + i * group_size;
        const float inverse_diagonal = 1.0f / factor[i];
        for (int r = 0; r < kTileRows; r++) {
            errors[r] = (values[kTileRows * i + r] - table[windows[r]] * scales[r]) * inverse_diagonal;
        }
        memcpy(to.errors + i * source.n_rows + row, errors, sizeof errors);
        for (int part = 0; part < kTileRows; part += kLanes) {
            spread_error(load_rows(errors + part), factor, i, group_size, values + part);
        }
    }
}

}  // namespace
}  // namespace laq
