// The kernels, written once over an instruction set `I`; every tier includes this file with its own flags.
//
// All is in an anonymous namespace and nothing from std is instantiated: a function compiled here for AVX-512
// must never be the copy that the linker keeps for a machine without it.
//
// An instruction set has
//   Bytes, Ints, Floats      vectors over one part of a line: 64 / kParts bytes, 16 / kParts rows
//   kParts                   parts of a line
//   kBlock                   inputs whose sums fit into registers, with one plane of activations
//   load, field, either      64 bytes of codes from lines of bits
//   dot                      add products of four neighbouring bytes to each row's 32-bit sum
#pragma once

#include <string.h>

#include "attention.hpp"
#include "convert.hpp"
#include "lanes.hpp"
#include "search.hpp"
#include "tier.hpp"

namespace laq {
namespace {

// Magnitudes below count as zero: their reciprocal would overflow.
constexpr float kSmallest = 1e-30f;

template <int... S>
struct Sequence {};
using Slots = Sequence<0, 1, 2, 3, 4, 5, 6, 7>;

// Eight numbers of B bits to eight bytes, for instruction sets without a way of their own.
template <int B>
LAQ_INLINE uint64_t spread_bits(uint64_t word) {
    uint64_t r = 0;
    for (int i = 0; i < 8; i++) r |= (word >> (B * i) & ((1u << B) - 1)) << (8 * i);
    return r;
}

// ------------------------------------------------------------------ codes

// Codes of slot S of a brick of B bits at p, for the part of its lines that starts at byte `part`.
template <class I, int B, int S>
LAQ_INLINE typename I::Bytes slot_codes(const uint8_t *p, int part) {
    if constexpr (B == 8) {
        return I::load(p + kLineBytes * S + part);
    } else {
        constexpr int four = B & 4, two = B & 2, one = B & 1;  // widths of the fields, and lines they take
        typename I::Bytes codes;
        if constexpr (four != 0) {
            codes = I::template field<4 * (S & 1), 4, B - 4>(I::load(p + kLineBytes * (S >> 1) + part));
        }
        if constexpr (two != 0) {
            const auto more = I::template field<2 * (S & 3), 2, one>(I::load(p + kLineBytes * (four + (S >> 2)) + part));
            if constexpr (four != 0) {
                codes = I::either(codes, more);
            } else {
                codes = more;
            }
        }
        if constexpr (one != 0) {
            const auto more = I::template field<S, 1, 0>(I::load(p + kLineBytes * (four + two) + part));
            if constexpr (four != 0 || two != 0) {
                codes = I::either(codes, more);
            } else {
                codes = more;
            }
        }
        return codes;
    }
}

template <class I, int B, int... S>
LAQ_INLINE void store_brick(const uint8_t *p, int part, uint8_t *out, Sequence<S...>) {
    (I::store(out + kLineBytes * S + part, slot_codes<I, B, S>(p, part)), ...);
}

// A tile's codes by slot: out[group_size / 4][64].
template <class I, int B>
LAQ_INLINE void unpack_tile(const uint8_t *tile, int n_bricks, uint8_t *out) {
    for (int brick = 0; brick < n_bricks; brick++) {
        for (int part = 0; part < kLineBytes; part += kLineBytes / I::kParts) {
            store_brick<I, B>(tile + kLineBytes * B * brick, part, out + 8 * kLineBytes * brick, Slots{});
        }
    }
}

// ------------------------------------------------------------------ scales and zero points

// 16 zero points of a tile of B bits, as stored, in the least significant bits of bytes.
template <class I, int B>
LAQ_INLINE void unpack_zero_points(const uint8_t *p, uint8_t *out) {
    if constexpr (B == 8) {
        memcpy(out, p, 16);
    } else {
        for (int half = 0; half < 2; half++) {
            uint64_t word = 0;
            memcpy(&word, p + B * half, B);
            const uint64_t spread = I::template spread<B>(word);
            memcpy(out + 8 * half, &spread, 8);
        }
    }
}

// What rows have for one tile: zero points as integers, and what a sum of products is multiplied by. Widths up to
// 3 have zero points in half steps: sums and zero points are doubled, scales halved.
template <class I>
struct RowFactors {
    typename I::Ints zero_points[I::kParts];
    typename I::Floats scales[I::kParts];
};

template <class I, int B>
LAQ_INLINE void load_row_factors(const laq_matrix &matrix, int64_t tile, int octave, const uint8_t *zero_points,
                                 RowFactors<I> &factors) {
    alignas(16) uint8_t stored[16];
    unpack_zero_points<I, B>(zero_points, stored);
    constexpr int first = B <= 3 ? (1 << (B - 1)) - 1 : 0;
    constexpr int halving = B <= 3 ? 1 : 0;
    for (int part = 0; part < I::kParts; part++) {
        constexpr int rows = kTileRows / I::kParts;
        factors.zero_points[part] = I::add(I::widen(stored + rows * part), I::repeat(first));
        if (matrix.scale_format == LAQ_SCALES_LOG8) {
            const uint8_t *steps = static_cast<const uint8_t *>(matrix.scales) + kTileRows * tile + rows * part;
            factors.scales[part] = I::log_scales(steps, octave - halving);
        } else {
            const uint16_t *halves = static_cast<const uint16_t *>(matrix.scales) + kTileRows * tile + rows * part;
            factors.scales[part] = I::times(I::half_scales(halves), halving ? 0.5f : 1.0f);
        }
    }
}

// Sums of codes x activations, less zero points x the sum of activations, as floats.
template <class I, int B>
LAQ_INLINE typename I::Floats centred(typename I::Ints sums, typename I::Ints zero_points, int32_t activation_sum) {
    if constexpr (B <= 3) {
        sums = I::add(sums, sums);
    }
    constexpr int offset = B == 8 ? I::kOffset8 : 0;  // what `dot` left out of codes of 8 bits
    if constexpr (offset != 0) {
        zero_points = I::add(zero_points, I::repeat(-offset));
    }
    return I::to_float(I::subtract(sums, I::multiply(zero_points, I::repeat(activation_sum))));
}

// ------------------------------------------------------------------ one input

template <class I, int B, bool kTwoPlanes, int S>
LAQ_INLINE void add_slot(const uint8_t *p, int part, const int8_t *high, const int8_t *low,
                         typename I::Ints (&a)[2], typename I::Ints (&b)[2]) {
    const auto codes = slot_codes<I, B, S>(p, part);
    a[S & 1] = I::template dot<B>(a[S & 1], codes, I::repeat4(high + 4 * S));
    if constexpr (kTwoPlanes) {
        b[S & 1] = I::template dot<B>(b[S & 1], codes, I::repeat4(low + 4 * S));
    }
}

template <class I, int B, bool kTwoPlanes, int... S>
LAQ_INLINE void add_brick(const uint8_t *p, int part, const int8_t *high, const int8_t *low,
                          typename I::Ints (&a)[2], typename I::Ints (&b)[2], Sequence<S...>) {
    (add_slot<I, B, kTwoPlanes, S>(p, part, high, low, a, b), ...);
}

// Where the next tile of a row block lies.
struct Cursor {
    const uint8_t *payload;
    const uint8_t *zero_points;
};

// Tiles first to last of one row block, all of B bits.
template <class I, int B, bool kTwoPlanes>
Cursor vector_run(const laq_matrix &matrix, const Activations &x, int64_t first, int64_t last, int octave,
                  Cursor at, typename I::Floats *out) {
    const int group_size = matrix.group_size, n_bricks = group_size / kBrickColumns;
    typename I::Floats total[I::kParts];
    for (int part = 0; part < I::kParts; part++) {
        total[part] = out[part];
    }
    for (int64_t tile = first; tile < last; tile++) {
        const int64_t group = matrix.groups[tile];
        for (int line = 0; line < B * n_bricks; line++) {
            __builtin_prefetch(at.payload + kPrefetch + kLineBytes * line);
        }
        RowFactors<I> rows;
        load_row_factors<I, B>(matrix, tile, octave, at.zero_points, rows);
        for (int part = 0; part < I::kParts; part++) {
            typename I::Ints a[2] = {I::repeat(0), I::repeat(0)}, b[2] = {I::repeat(0), I::repeat(0)};
            const int8_t *high = x.high + group * group_size, *low = x.low + group * group_size;
            for (int brick = 0; brick < n_bricks; brick++) {
                const int start = kBrickColumns * brick;
                add_brick<I, B, kTwoPlanes>(at.payload + kLineBytes * B * brick, kLineBytes / I::kParts * part,
                                            high + start, low + start, a, b, Slots{});
            }
            auto sums = I::add(a[0], a[1]);
            if constexpr (kTwoPlanes) {
                sums = I::add(I::times256(sums), I::add(b[0], b[1]));
            }
            const auto value = centred<I, B>(sums, rows.zero_points[part], x.sums[group]);
            total[part] = I::multiply_add(value, I::times(rows.scales[part], x.scales[group]), total[part]);
        }
        at.payload += 2 * B * group_size;
        at.zero_points += 2 * B;
    }
    for (int part = 0; part < I::kParts; part++) {
        out[part] = total[part];
    }
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

// Zero points lie as densely as the payload: 2 b bytes for every 2 b group_size.
LAQ_INLINE Cursor cursor_at(const laq_matrix &matrix, const uint8_t *payload) {
    return {payload, matrix.zero_points + (payload - matrix.payload) / matrix.group_size};
}

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

// ------------------------------------------------------------------ many inputs

// N inputs against one unpacked tile; sums are added to out[N][16].
template <class I, int B, bool kTwoPlanes, int N>
__attribute__((noinline)) void multiply_tile(const uint8_t *codes, int n_slots, const int8_t *high,
                                             const int8_t *low, const float *scales, const int32_t *sums,
                                             const RowFactors<I> &rows, float *out) {
    const int group_size = 4 * n_slots;
    for (int part = 0; part < I::kParts; part++) {
        constexpr int n_rows = kTileRows / I::kParts;
        typename I::Ints a[N], b[kTwoPlanes ? N : 1];
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            a[n] = I::repeat(0);
            b[kTwoPlanes ? n : 0] = I::repeat(0);
        }
        for (int slot = 0; slot < n_slots; slot++) {
            const auto w = I::load(codes + kLineBytes * slot + kLineBytes / I::kParts * part);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                a[n] = I::template dot<B>(a[n], w, I::repeat4(high + n * group_size + 4 * slot));
                if constexpr (kTwoPlanes) {
                    b[n] = I::template dot<B>(b[n], w, I::repeat4(low + n * group_size + 4 * slot));
                }
            }
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            auto sum = a[n];
            if constexpr (kTwoPlanes) {
                sum = I::add(I::times256(sum), b[n]);
            }
            const auto value = centred<I, B>(sum, rows.zero_points[part], sums[n]);
            float *here = out + kTileRows * n + n_rows * part;
            I::store_floats(here, I::multiply_add(value, I::times(rows.scales[part], scales[n]), I::load_floats(here)));
        }
    }
}

// As many of inputs `done` to n as N divides; returns the first one left.
template <class I, int B, bool kTwoPlanes, int N>
LAQ_INLINE int multiply_tiles(const uint8_t *codes, const Activations &x, int group_size, int64_t first, int done,
                              int n, const RowFactors<I> &rows, float *out) {
    for (; done + N <= n; done += N) {
        const int64_t here = first + done;
        multiply_tile<I, B, kTwoPlanes, N>(codes, group_size / 4, x.high + here * group_size,
                                           x.low + here * group_size, x.scales + here, x.sums + here, rows,
                                           out + kTileRows * done);
    }
    return done;
}

template <class I, int B, bool kTwoPlanes>
void block_tile(const laq_matrix &matrix, const Activations &x, int64_t tile, int octave, Cursor at, int64_t input,
                int n, float *out) {
    const int group_size = matrix.group_size;
    alignas(64) uint8_t codes[32 * kLineBytes];
    unpack_tile<I, B>(at.payload, group_size / kBrickColumns, codes);
    RowFactors<I> rows;
    load_row_factors<I, B>(matrix, tile, octave, at.zero_points, rows);
    const int64_t first = matrix.groups[tile] * x.n_inputs + input;
    constexpr int most = kTwoPlanes && I::kBlock > 1 ? I::kBlock / 2 : I::kBlock;
    int done = multiply_tiles<I, B, kTwoPlanes, most>(codes, x, group_size, first, 0, n, rows, out);
    if constexpr (most > 4) {
        done = multiply_tiles<I, B, kTwoPlanes, 4>(codes, x, group_size, first, done, n, rows, out);
    }
    if constexpr (most > 1) {
        multiply_tiles<I, B, kTwoPlanes, 1>(codes, x, group_size, first, done, n, rows, out);
    }
}

template <class I, bool kTwoPlanes>
void block_rows(const laq_matrix &matrix, const Activations &x, int64_t block, Cursor at, int64_t input, int n,
                float *out) {
    memset(out, 0, sizeof(float) * kTileRows * n);
    const int octave = matrix.octaves != nullptr ? matrix.octaves[block] : 0;
    for (int64_t tile = matrix.tile_starts[block]; tile < matrix.tile_starts[block + 1]; tile++) {
        const int bits = matrix.bits[tile], n_bytes = 2 * bits * matrix.group_size;
        for (int ahead = 0; ahead < n_bytes; ahead += kLineBytes) {
            __builtin_prefetch(at.payload + kPrefetch + ahead);
        }
        switch (bits) {
            case 1: block_tile<I, 1, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            case 2: block_tile<I, 2, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            case 3: block_tile<I, 3, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            case 4: block_tile<I, 4, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            case 5: block_tile<I, 5, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            case 6: block_tile<I, 6, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
            default: block_tile<I, 8, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out); break;
        }
        at.payload += n_bytes;
        at.zero_points += 2 * bits;
    }
}

template <class I>
void block_kernel(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t row_block,
                  const uint8_t *payload, int64_t input, int n, float *out) {
    const Cursor at = cursor_at(matrix, payload);
    if (two_planes) {
        block_rows<I, true>(matrix, x, row_block, at, input, n, out);
    } else {
        block_rows<I, false>(matrix, x, row_block, at, input, n, out);
    }
}

// ------------------------------------------------------------------ activations and single tiles

// Plain loops: each is a form that compilers vectorize without leave to reorder float operations.
inline void quantize_kernel(const float *x, int64_t n_groups, int group_size, int bits, int64_t input,
                            int64_t n_inputs, int8_t *high, int8_t *low, float *scales, int32_t *sums) {
    const float limit = bits == 16 ? 32512.0f : 127.0f;
    for (int64_t group = 0; group < n_groups; group++, x += group_size) {
        uint32_t largest = 0;  // magnitudes compare like their bits
        for (int i = 0; i < group_size; i++) {
            const uint32_t magnitude = as_bits(x[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        const float top = as_float(largest);
        const float inverse = top < kSmallest ? 0.0f : limit / top;
        const int64_t place = group * n_inputs + input;
        int32_t values[128], sum = 0;
        for (int i = 0; i < group_size; i++) {
            values[i] = static_cast<int32_t>(__builtin_rintf(x[i] * inverse));
            sum += values[i];
        }
        int8_t *top_plane = high + place * group_size;
        if (bits == 16) {
            int8_t *bottom_plane = low + place * group_size;
            for (int i = 0; i < group_size; i++) {
                const int32_t upper = (values[i] + 128) >> 8;
                top_plane[i] = static_cast<int8_t>(upper);
                bottom_plane[i] = static_cast<int8_t>(values[i] - 256 * upper);
            }
        } else {
            for (int i = 0; i < group_size; i++) {
                top_plane[i] = static_cast<int8_t>(values[i]);
            }
        }
        scales[place] = top < kSmallest ? 0.0f : top / limit;
        sums[place] = sum;
    }
}

template <class I>
void codes_kernel(const uint8_t *tile, int bits, int group_size, uint8_t *out) {
    alignas(64) uint8_t slots[32 * kLineBytes];
    const int n_bricks = group_size / kBrickColumns;
    switch (bits) {
        case 1: unpack_tile<I, 1>(tile, n_bricks, slots); break;
        case 2: unpack_tile<I, 2>(tile, n_bricks, slots); break;
        case 3: unpack_tile<I, 3>(tile, n_bricks, slots); break;
        case 4: unpack_tile<I, 4>(tile, n_bricks, slots); break;
        case 5: unpack_tile<I, 5>(tile, n_bricks, slots); break;
        case 6: unpack_tile<I, 6>(tile, n_bricks, slots); break;
        default: unpack_tile<I, 8>(tile, n_bricks, slots); break;
    }
    for (int slot = 0; slot < group_size / 4; slot++) {
        for (int row = 0; row < kTileRows; row++) {
            memcpy(out + row * group_size + 4 * slot, slots + kLineBytes * slot + 4 * row, 4);
        }
    }
}

template <class I>
constexpr Tier tier_of(const char *name, bool (*runs_here)()) {
    return {name, runs_here, quantize_kernel, vector_kernel<I>, block_kernel<I>, attend_kernel<I>,
            attention_scratch, multiply_kernel<I>, codes_kernel<I>, errors_kernel, rounding_kernel};
}

}  // namespace
}  // namespace laq
