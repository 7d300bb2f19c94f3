// Many inputs: each tile is unpacked to memory once; see kernels.hpp.
#pragma once

#include "factors.hpp"
#include "tiles.hpp"

namespace laq {
namespace {

// N inputs against one unpacked tile, whose codes are of 8 bits or below 64; sums are added to out[N][16].
template <class I, int B, bool kTwoPlanes, int N>
__attribute__((noinline)) void multiply_tile(const uint8_t *codes, int n_slots, const int8_t *high,
                                             const int8_t *low, const float *scales, const int32_t *sums,
                                             const RowFactors<I> &rows, float *out) {
    const int group_size = 4 * n_slots;
    for (int part = 0; part < I::kParts; part++) {
        constexpr int n_rows = kTileRows / I::kParts;
        const auto minus_zero_points = I::subtract(I::repeat(0), rows.zero_points[part]);
        typename I::Ints a[N], b[kTwoPlanes ? N : 1];
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            a[n] = I::multiply(minus_zero_points, I::repeat(sums[n]));
            b[kTwoPlanes ? n : 0] = I::repeat(0);
        }
        for (int slot = 0; slot < n_slots; slot++) {
            const auto w = I::load(codes + kLineBytes * slot + kLineBytes / I::kParts * part);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                const int8_t *x = high + n * group_size + 4 * slot, *y = low + n * group_size + 4 * slot;
                if constexpr (kTwoPlanes) {
                    a[n] = I::template dot<B>(a[n], w, I::repeat4(y));
                    b[n] = I::template dot<B>(b[n], w, I::repeat4(x));
                } else {
                    a[n] = I::template dot<B>(a[n], w, I::repeat4(x));
                }
            }
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            auto sum = a[n];
            if constexpr (kTwoPlanes) {
                sum = I::add(sum, I::template up<8>(b[n]));
            }
            float *here = out + kTileRows * n + n_rows * part;
            const auto scale = I::times(rows.scales[part], scales[n]);
            I::store_floats(here, I::multiply_add(I::to_float(sum), scale, I::load_floats(here)));
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

template <class I, int TAG, bool kTwoPlanes>
void block_tile(const laq_matrix &matrix, const Activations &x, int64_t tile, int octave, Cursor at, int64_t input,
                int n, float *out) {
    const int group_size = matrix.group_size;
    alignas(64) uint8_t codes[32 * kLineBytes];
    constexpr int seen = seen_width(TAG) == 8 ? 8 : 6;  // 8 bits or less, to products
    const uint8_t *table = is_table(TAG) ? table_of(matrix.bits[tile], matrix.palettes) : nullptr;
    unpack_seen<I, TAG, has_half_steps(TAG) ? 1 : 0>(at.payload, group_size, table, codes);
    RowFactors<I> rows;
    load_row_factors<I, TAG>(matrix, tile, octave, at.zero_points, rows);
    const int64_t first = matrix.groups[tile] * x.n_inputs + input;
    constexpr int most = kTwoPlanes && I::kBlock > 1 ? I::kBlock / 2 : I::kBlock;
    int done = multiply_tiles<I, seen, kTwoPlanes, most>(codes, x, group_size, first, 0, n, rows, out);
    if constexpr (most > 4) {
        done = multiply_tiles<I, seen, kTwoPlanes, 4>(codes, x, group_size, first, done, n, rows, out);
    }
    if constexpr (most > 1) {
        multiply_tiles<I, seen, kTwoPlanes, 1>(codes, x, group_size, first, done, n, rows, out);
    }
}

template <class I, bool kTwoPlanes>
void block_rows(const laq_matrix &matrix, const Activations &x, int64_t block, Cursor at, int64_t input, int n,
                float *out) {
    memset(out, 0, sizeof(float) * kTileRows * n);
    const int octave = matrix.octaves != nullptr ? matrix.octaves[block] : 0;
    for (int64_t tile = matrix.tile_starts[block]; tile < matrix.tile_starts[block + 1]; tile++) {
        const int tag = matrix.bits[tile], n_bytes = tile_bytes(tag, matrix.group_size);
        for (int ahead = 0; ahead < n_bytes; ahead += kLineBytes) {
            ask_for(at.payload + kPrefetch + ahead);
        }
        by_tag(tag, [&](auto its) __attribute__((always_inline)) {
            block_tile<I, decltype(its)::value, kTwoPlanes>(matrix, x, tile, octave, at, input, n, out);
        });
        at.payload += n_bytes;
        at.zero_points += 2 * zero_point_bits(tag);
    }
}

// The function of a tier.
template <class I>
void block_kernel(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t row_block,
                  const uint8_t *payload, int64_t input, int n, float *out) {
    const Cursor at = cursor_at(matrix, row_block, payload);
    if (two_planes) {
        block_rows<I, true>(matrix, x, row_block, at, input, n, out);
    } else {
        block_rows<I, false>(matrix, x, row_block, at, input, n, out);
    }
}

}  // namespace
}  // namespace laq
