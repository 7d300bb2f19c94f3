// Scales and zero points of the rows of a tile; see kernels.hpp.
#pragma once

#include "codes.hpp"
#include "convert.hpp"

namespace laq {
namespace {

// Widths whose zero points lie in half steps: sums of codes and zero points are doubled, scales halved, all exactly.
constexpr bool has_half_steps(int bits) { return bits <= 3; }

template <class Word>
LAQ_INLINE uint64_t load_word(const uint8_t *p) {
    Word word;
    memcpy(&word, p, sizeof word);
    return word;
}

// B bytes, none beyond them: they may be the last ones. A copy to memory instead would have to wait for its store.
template <int B>
LAQ_INLINE uint64_t load_bytes(const uint8_t *p) {
    if constexpr (B == 1) {
        return p[0];
    } else if constexpr (B == 2) {
        return load_word<uint16_t>(p);
    } else if constexpr (B == 4) {
        return load_word<uint32_t>(p);
    } else if constexpr (B == 8) {
        return load_word<uint64_t>(p);
    } else {
        constexpr int first = B > 4 ? 4 : 2;
        return load_bytes<first>(p) | load_bytes<B - first>(p + first) << (8 * first);
    }
}

// Eight numbers of B bits to eight bytes, for instruction sets without a way of their own.
template <int B>
LAQ_INLINE uint64_t spread_bits(uint64_t word) {
    uint64_t r = 0;
    for (int i = 0; i < 8; i++) r |= (word >> (B * i) & ((1u << B) - 1)) << (8 * i);
    return r;
}

// Eight zero points of a tile of B bits as bytes; in half steps for widths that have them.
template <class I, int B>
LAQ_INLINE uint64_t eight_zero_points(const uint8_t *p) {
    const uint64_t stored = load_bytes<B>(p);
    constexpr uint64_t first = has_half_steps(B) ? (1u << (B - 1)) - 1 : 0;
    if constexpr (B == 8) {
        return stored;
    } else {
        return I::template spread<B>(stored) + first * 0x0101010101010101u;
    }
}

// What rows have for one tile: zero points as integers, and what a sum of products is multiplied by.
template <class I>
struct RowFactors {
    typename I::Ints zero_points[I::kParts];
    typename I::Floats scales[I::kParts];
};

// Zero points of a tile, those of 8 bits moved as dot products move codes.
template <class I, int TAG>
LAQ_INLINE void load_zero_points(const uint8_t *stored, typename I::Ints (&zero_points)[I::kParts]) {
    if constexpr (is_trits(TAG)) {
        for (auto &part : zero_points) part = I::repeat(1);
    } else if constexpr (!is_integer(TAG)) {
        for (auto &part : zero_points) part = I::repeat(kMiddle - I::kOffset8);
    } else {
        ask_for(stored + kPrefetchFactors);
        const uint64_t low = eight_zero_points<I, TAG>(stored), high = eight_zero_points<I, TAG>(stored + TAG);
#pragma GCC unroll 4
        for (int part = 0; part < I::kParts; part++) {
            zero_points[part] = I::widen(low, high, part);
            if constexpr (TAG == 8 && I::kOffset8 != 0) {
                zero_points[part] = I::add(zero_points[part], I::repeat(-I::kOffset8));
            }
        }
    }
}

// The log steps of a tile's 16 rows as bytes.
struct LogSteps {
    uint64_t low, high;
};

LAQ_INLINE LogSteps log8_steps(const uint8_t *p) { return {load_word<uint64_t>(p), load_word<uint64_t>(p + 8)}; }

// A byte of the tile, then four bits a row.
template <class I>
LAQ_INLINE LogSteps log4_steps(const uint8_t *p) {
    const uint64_t base = p[0] * 0x0101010101010101u;
    return {I::template spread<4>(load_word<uint32_t>(p + 1)) + base,
            I::template spread<4>(load_word<uint32_t>(p + 5)) + base};
}

template <class I, int TAG>
LAQ_INLINE void load_row_factors(const laq_matrix &matrix, int64_t tile, int octave, const uint8_t *zero_points,
                                 RowFactors<I> &factors) {
    const uint8_t *scales = static_cast<const uint8_t *>(matrix.scales) + tile_scale_bytes(matrix.scale_format) * tile;
    ask_for(scales + kPrefetchFactors);
    load_zero_points<I, TAG>(zero_points, factors.zero_points);
    if (!is_log(matrix.scale_format)) {
#pragma GCC unroll 4
        for (int part = 0; part < I::kParts; part++) {
            const uint8_t *halves = scales + 2 * (kTileRows / I::kParts) * part;
            factors.scales[part] = I::times(I::half_scales(halves), has_half_steps(TAG) ? 0.5f : 1.0f);
        }
        return;
    }
    const LogSteps steps = matrix.scale_format == LAQ_SCALES_LOG4 ? log4_steps<I>(scales) : log8_steps(scales);
#pragma GCC unroll 4
    for (int part = 0; part < I::kParts; part++) {
        const auto stored = I::widen(steps.low, steps.high, part);
        factors.scales[part] = I::log_scales(stored, octave - (has_half_steps(TAG) ? 1 : 0));
    }
}

// Where the next tile of a row block lies.
struct Cursor {
    const uint8_t *payload;
    const uint8_t *zero_points;
};

LAQ_INLINE Cursor cursor_at(const laq_matrix &matrix, int64_t row_block, const uint8_t *payload) {
    return {payload, matrix.zero_points + matrix.zero_offsets[row_block]};
}

}  // namespace
}  // namespace laq
