// One input, or a few: tiles are unpacked into registers and multiplied at once; see kernels.hpp.
#pragma once

#include "factors.hpp"
#include "tiles.hpp"

namespace laq {
namespace {

// Products of even and of odd slots with each plane of N inputs.
template <class I, int N>
struct Sums {
    typename I::Ints high[N][2][I::kParts], low[N][2][I::kParts];
};

// Sums of N outputs, 16 rows each.
template <class I, int N>
struct Outputs {
    typename I::Floats rows[N][I::kParts];
};

// Codes of odd slots are taken times 2 ** odd_up: they lie so much higher in their byte than those of the slot before,
// and one shift serves both. No byte exceeds 127: not every dot product takes more.
constexpr int odd_up(int bits) { return bits == 2 ? 2 : bits & 1; }

// Where both lie alike they share one sum, unless that of a single input would have to wait for itself.
constexpr bool share_sum(int bits, int n_inputs) { return odd_up(bits) == 0 && n_inputs > 1; }

// Codes that stand for themselves, where others are looked up.
struct Themselves {
    template <class Bytes>
    LAQ_INLINE Bytes entries(Bytes codes) const { return codes; }
};

// Lines of B bits a code; codes, or what is looked up, have at most SEEN bits.
template <class I, int B, int SEEN, bool kTwoPlanes, int N, int S, class Lookup>
LAQ_INLINE void add_slot(const uint8_t *brick, const int8_t *high, const int8_t *low, int stride, const Lookup &lookup,
                         Sums<I, N> &sums) {
    constexpr int odd = S & 1, set = share_sum(SEEN, N) ? 0 : odd, up = B == SEEN ? odd * odd_up(SEEN) : 0;
#pragma GCC unroll 4
    for (int part = 0; part < I::kParts; part++) {
        const auto codes = lookup.entries(slot_codes<I, B, S, up>(brick, kLineBytes / I::kParts * part));
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            auto &sum = sums.high[n][set][part], &of_low = sums.low[n][set][part];
            sum = I::template dot<SEEN>(sum, codes, I::repeat4(high + n * stride + 4 * S));
            if constexpr (kTwoPlanes) {
                of_low = I::template dot<SEEN>(of_low, codes, I::repeat4(low + n * stride + 4 * S));
            }
        }
    }
}

template <class I, int B, int SEEN, bool kTwoPlanes, int N, class Lookup, int... S>
LAQ_INLINE void add_brick(const uint8_t *brick, const int8_t *high, const int8_t *low, int stride, const Lookup &lookup,
                          Sums<I, N> &sums, Sequence<S...>) {
    (add_slot<I, B, SEEN, kTwoPlanes, N, S>(brick, high, low, stride, lookup, sums), ...);
}

template <class I, int B, int N>
LAQ_INLINE typename I::Ints of_all_slots(const typename I::Ints (&sums)[2][I::kParts], int part) {
    if constexpr (share_sum(B, N)) {
        return sums[0][part];
    } else if constexpr (odd_up(B) == 0) {
        return I::add(sums[0][part], sums[1][part]);
    } else {
        return I::add(sums[0][part], I::template down<odd_up(B)>(sums[1][part]));
    }
}

template <class I, int N>
LAQ_INLINE Sums<I, N> no_sums() {
    Sums<I, N> sums;
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
        for (int part = 0; part < I::kParts; part++) {
            sums.high[n][0][part] = sums.high[n][1][part] = I::repeat(0);
            sums.low[n][0][part] = sums.low[n][1][part] = I::repeat(0);
        }
    }
    return sums;
}

// Unpacked in registers.
template <class I, int B, int SEEN, bool kTwoPlanes, int N, class Lookup>
LAQ_INLINE Sums<I, N> sums_of_lines(const laq_matrix &matrix, const Activations &x, int64_t tile,
                                    const uint8_t *payload, const Lookup &lookup) {
    const int64_t first = int64_t{matrix.groups[tile]} * N * matrix.group_size;
    Sums<I, N> sums = no_sums<I, N>();
    for (int column = 0; column < matrix.group_size; column += kBrickColumns, payload += kLineBytes * B) {
#pragma GCC unroll 8
        for (int line = 0; line < B; line++) {
            ask_for(payload + kLineBytes * line + kPrefetch);
        }
        add_brick<I, B, SEEN, kTwoPlanes, N>(payload, x.high + first + column, x.low + first + column,
                                             matrix.group_size, lookup, sums, Slots{});
    }
    return sums;
}

// Unpacked to memory first.
template <class I, int TAG, bool kTwoPlanes, int N>
LAQ_INLINE Sums<I, N> sums_of_bytes(const laq_matrix &matrix, const Activations &x, int64_t tile,
                                    const uint8_t *payload) {
    const int64_t first = int64_t{matrix.groups[tile]} * N * matrix.group_size;
    const int n_bytes = tile_bytes(TAG, matrix.group_size);
    alignas(64) uint8_t bytes[32 * kLineBytes];
    for (int ahead = 0; ahead < n_bytes; ahead += kLineBytes) ask_for(payload + kPrefetch + ahead);
    unpack_seen<I, TAG, 0>(payload, matrix.group_size, nullptr, bytes);
    Sums<I, N> sums = no_sums<I, N>();
    for (int column = 0; column < matrix.group_size; column += kBrickColumns) {
        add_brick<I, 8, seen_width(TAG), kTwoPlanes, N>(bytes + kLineBytes / 4 * column, x.high + first + column,
                                                          x.low + first + column, matrix.group_size, Themselves{},
                                                          sums, Slots{});
    }
    return sums;
}

template <class I, int TAG, bool kTwoPlanes, int N>
LAQ_INLINE Sums<I, N> sums_of_tile(const laq_matrix &matrix, const Activations &x, int64_t tile,
                                   const uint8_t *payload, const uint8_t *table) {
    constexpr int width = width_of(TAG);
    if constexpr (is_trellis(TAG) || is_trits(TAG)) {
        return sums_of_bytes<I, TAG, kTwoPlanes, N>(matrix, x, tile, payload);
    } else if constexpr (is_table(TAG)) {
        return sums_of_lines<I, width, 8, kTwoPlanes, N>(matrix, x, tile, payload, typename I::Sixteen(table));
    } else {
        return sums_of_lines<I, width, width, kTwoPlanes, N>(matrix, x, tile, payload, Themselves{});
    }
}

// What the sums of a tile add to the outputs.
template <class I, int TAG, bool kTwoPlanes, int N>
LAQ_INLINE void add_outputs(const laq_matrix &matrix, const Activations &x, int64_t tile, int octave,
                            const uint8_t *zero_points, const Sums<I, N> &sums, Outputs<I, N> &out) {
    constexpr int seen = seen_width(TAG);
    const int64_t first = int64_t{matrix.groups[tile]} * N;
    RowFactors<I> rows;
    load_row_factors<I, TAG>(matrix, tile, octave, zero_points, rows);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
#pragma GCC unroll 4
        for (int part = 0; part < I::kParts; part++) {
            auto sum = of_all_slots<I, seen, N>(sums.high[n], part);
            if constexpr (kTwoPlanes) {
                sum = I::add(I::template up<8>(sum), of_all_slots<I, seen, N>(sums.low[n], part));
            }
            if constexpr (has_half_steps(TAG)) {
                sum = I::add(sum, sum);
            }
            sum = I::subtract(sum, I::multiply(rows.zero_points[part], I::repeat(x.sums[first + n])));
            const auto scale = I::times(rows.scales[part], x.scales[first + n]);
            out.rows[n][part] = I::multiply_add(I::to_float(sum), scale, out.rows[n][part]);
        }
    }
}

// Tiles first to last of one row block, all with one tag. A function of its own: inlined for every tag into one, runs would
// compete for registers. With one input the sums of a tile are used after the next one was begun: by then they are
// there. Those of several inputs would not fit into registers twice, and fill the time themselves.
template <class I, int TAG, bool kTwoPlanes, int N>
__attribute__((noinline)) Cursor vector_run(const laq_matrix &matrix, const Activations &x, int64_t first, int64_t last,
                                            int octave, Cursor at, Outputs<I, N> &out) {
    const uint8_t *table = is_table(TAG) ? table_of(matrix.bits[first], matrix.palettes) : nullptr;
    Outputs<I, N> total = out;
    const auto add = [&](int64_t tile, const Sums<I, N> &sums) {
        add_outputs<I, TAG, kTwoPlanes, N>(matrix, x, tile, octave, at.zero_points, sums, total);
        at.zero_points += 2 * zero_point_bits(TAG);
    };
    Sums<I, N> before{};
    for (int64_t tile = first; tile < last; tile++) {
        const Sums<I, N> sums = sums_of_tile<I, TAG, kTwoPlanes, N>(matrix, x, tile, at.payload, table);
        at.payload += tile_bytes(TAG, matrix.group_size);
        if constexpr (N > 1) {
            add(tile, sums);
        } else {
            if (tile > first) {
                add(tile - 1, before);
            }
            before = sums;
        }
    }
    if constexpr (N == 1) {
        add(last - 1, before);
    }
    out = total;
    return at;
}

LAQ_INLINE int64_t end_of_run(const laq_matrix &matrix, int64_t tile, int64_t last) {
    int64_t end = tile + 1;
    while (end < last && matrix.bits[end] == matrix.bits[tile]) {
        end++;
    }
    return end;
}

template <class I, bool kTwoPlanes, int N>
void vector_blocks(const laq_matrix &matrix, const Activations &x, int64_t first, int64_t last, Cursor at,
                   float *out) {
    for (int64_t block = first; block < last; block++) {
        Outputs<I, N> sums;
        for (auto &rows : sums.rows) {
            for (auto &part : rows) part = I::zeros();
        }
        const int octave = matrix.octaves != nullptr ? matrix.octaves[block] : 0;
        const int64_t stop = matrix.tile_starts[block + 1];
        for (int64_t tile = matrix.tile_starts[block]; tile < stop;) {
            const int64_t end = end_of_run(matrix, tile, stop);
            by_tag(matrix.bits[tile], [&](auto tag) __attribute__((always_inline)) {
                at = vector_run<I, decltype(tag)::value, kTwoPlanes, N>(matrix, x, tile, end, octave, at, sums);
            });
            tile = end;
        }
        for (auto &rows : sums.rows) {
            for (auto &part : rows) {
                I::store_floats(out, part);
                out += kTileRows / I::kParts;
            }
        }
    }
}

// The function of a tier.
template <class I>
void vector_kernel(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t first, int64_t last,
                   const uint8_t *payload, float *out) {
    static_assert(I::kFew == 1 || I::kFew == 4, "see the switch");
    const Cursor at = cursor_at(matrix, first, payload);
    if (!two_planes) return vector_blocks<I, false, 1>(matrix, x, first, last, at, out);
    if constexpr (I::kFew == 4) {
        switch (x.n_inputs) {
            case 2: return vector_blocks<I, true, 2>(matrix, x, first, last, at, out);
            case 3: return vector_blocks<I, true, 3>(matrix, x, first, last, at, out);
            case 4: return vector_blocks<I, true, 4>(matrix, x, first, last, at, out);
        }
    }
    vector_blocks<I, true, 1>(matrix, x, first, last, at, out);
}

}  // namespace
}  // namespace laq
