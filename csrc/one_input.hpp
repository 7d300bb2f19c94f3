// One input: tiles are unpacked into registers and multiplied at once; see kernels.hpp.
#pragma once

#include "factors.hpp"

namespace laq {
namespace {

// Products of even and of odd slots with each plane of the input.
template <class I>
struct Sums {
    typename I::Ints high[2][I::kParts], low[2][I::kParts];
};

// Codes of odd slots are taken times 2 ** odd_up: they lie so much higher in their byte than those of the slot before,
// and one shift serves both. No byte exceeds 127: not every dot product takes more.
constexpr int odd_up(int bits) { return bits == 2 ? 2 : bits & 1; }

template <class I, int B, bool kTwoPlanes, int S>
LAQ_INLINE void add_slot(const uint8_t *brick, const int8_t *high, const int8_t *low, Sums<I> &sums) {
    constexpr int odd = S & 1;
    const auto &x = I::repeat4(high + 4 * S), &y = I::repeat4(low + 4 * S);
#pragma GCC unroll 4
    for (int part = 0; part < I::kParts; part++) {
        const auto codes = slot_codes<I, B, S, odd * odd_up(B)>(brick, kLineBytes / I::kParts * part);
        sums.high[odd][part] = I::template dot<B>(sums.high[odd][part], codes, x);
        if constexpr (kTwoPlanes) {
            sums.low[odd][part] = I::template dot<B>(sums.low[odd][part], codes, y);
        }
    }
}

template <class I, int B, bool kTwoPlanes, int... S>
LAQ_INLINE void add_brick(const uint8_t *brick, const int8_t *high, const int8_t *low, Sums<I> &sums,
                          Sequence<S...>) {
    (add_slot<I, B, kTwoPlanes, S>(brick, high, low, sums), ...);
}

template <class I, int B>
LAQ_INLINE typename I::Ints of_all_slots(typename I::Ints even, typename I::Ints odd) {
    if constexpr (odd_up(B) == 0) {
        return I::add(even, odd);
    } else {
        return I::add(even, I::template down<odd_up(B)>(odd));
    }
}

template <class I, int B, bool kTwoPlanes>
LAQ_INLINE Sums<I> multiply_tile(const laq_matrix &matrix, const Activations &x, int64_t tile, const uint8_t *payload) {
    const int64_t first = int64_t{matrix.groups[tile]} * matrix.group_size;
    Sums<I> sums;
#pragma GCC unroll 4
    for (int part = 0; part < I::kParts; part++) {
        sums.high[0][part] = sums.high[1][part] = sums.low[0][part] = sums.low[1][part] = I::repeat(0);
    }
    for (int column = 0; column < matrix.group_size; column += kBrickColumns, payload += kLineBytes * B) {
#pragma GCC unroll 8
        for (int line = 0; line < B; line++) {
            ask_for(payload + kLineBytes * line + kPrefetch);
        }
        add_brick<I, B, kTwoPlanes>(payload, x.high + first + column, x.low + first + column, sums, Slots{});
    }
    return sums;
}

// What the sums of a tile add to the 16 outputs.
template <class I, int B, bool kTwoPlanes>
LAQ_INLINE void add_outputs(const laq_matrix &matrix, const Activations &x, int64_t tile, int octave,
                            const uint8_t *zero_points, const Sums<I> &sums, typename I::Floats (&out)[I::kParts]) {
    const int64_t group = matrix.groups[tile];
    RowFactors<I> rows;
    load_row_factors<I, B>(matrix, tile, octave, zero_points, rows);
#pragma GCC unroll 4
    for (int part = 0; part < I::kParts; part++) {
        auto sum = of_all_slots<I, B>(sums.high[0][part], sums.high[1][part]);
        if constexpr (kTwoPlanes) {
            sum = I::add(I::template up<8>(sum), of_all_slots<I, B>(sums.low[0][part], sums.low[1][part]));
        }
        if constexpr (has_half_steps(B)) {
            sum = I::add(sum, sum);
        }
        sum = I::subtract(sum, I::multiply(rows.zero_points[part], I::repeat(x.sums[group])));
        out[part] = I::multiply_add(I::to_float(sum), I::times(rows.scales[part], x.scales[group]), out[part]);
    }
}

// Tiles first to last of one row block, all of B bits. The sums of a tile are used after the next one was begun:
// by then they are there. A function of its own: inlined seven times into one, runs would compete for registers.
template <class I, int B, bool kTwoPlanes>
__attribute__((noinline)) Cursor vector_run(const laq_matrix &matrix, const Activations &x, int64_t first, int64_t last,
                                            int octave, Cursor at, typename I::Floats (&out)[I::kParts]) {
    typename I::Floats total[I::kParts];
    memcpy(total, out, sizeof total);
    Sums<I> before{};
    for (int64_t tile = first; tile < last; tile++) {
        const Sums<I> sums = multiply_tile<I, B, kTwoPlanes>(matrix, x, tile, at.payload);
        at.payload += 2 * B * matrix.group_size;
        if (tile > first) {
            add_outputs<I, B, kTwoPlanes>(matrix, x, tile - 1, octave, at.zero_points, before, total);
            at.zero_points += 2 * B;
        }
        before = sums;
    }
    add_outputs<I, B, kTwoPlanes>(matrix, x, last - 1, octave, at.zero_points, before, total);
    at.zero_points += 2 * B;
    memcpy(out, total, sizeof total);
    return at;
}

LAQ_INLINE int64_t end_of_run(const laq_matrix &matrix, int64_t tile, int64_t last) {
    int64_t end = tile + 1;
    while (end < last && matrix.bits[end] == matrix.bits[tile]) {
        end++;
    }
    return end;
}

template <class I, bool kTwoPlanes>
void vector_blocks(const laq_matrix &matrix, const Activations &x, int64_t first, int64_t last, Cursor at,
                   float *out) {
    for (int64_t block = first; block < last; block++, out += kTileRows) {
        typename I::Floats sums[I::kParts];
        for (int part = 0; part < I::kParts; part++) {
            sums[part] = I::zeros();
        }
        const int octave = matrix.octaves != nullptr ? matrix.octaves[block] : 0;
        const int64_t stop = matrix.tile_starts[block + 1];
        for (int64_t tile = matrix.tile_starts[block]; tile < stop;) {
            const int64_t end = end_of_run(matrix, tile, stop);
            switch (matrix.bits[tile]) {
                case 1: at = vector_run<I, 1, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                case 2: at = vector_run<I, 2, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                case 3: at = vector_run<I, 3, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                case 4: at = vector_run<I, 4, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                case 5: at = vector_run<I, 5, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                case 6: at = vector_run<I, 6, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
                default: at = vector_run<I, 8, kTwoPlanes>(matrix, x, tile, end, octave, at, sums); break;
            }
            tile = end;
        }
        for (int part = 0; part < I::kParts; part++) {
            I::store_floats(out + kTileRows / I::kParts * part, sums[part]);
        }
    }
}

// The function of a tier.
template <class I>
void vector_kernel(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t first, int64_t last,
                   const uint8_t *payload, float *out) {
    const Cursor at = cursor_at(matrix, payload);
    if (two_planes) {
        vector_blocks<I, true>(matrix, x, first, last, at, out);
    } else {
        vector_blocks<I, false>(matrix, x, first, last, at, out);
    }
}

}  // namespace
}  // namespace laq
