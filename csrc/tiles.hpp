// Whole tiles to bytes: what dot products see, and what codes stand for; see docs/FORMAT.md and kernels.hpp.
#pragma once

#include "factors.hpp"
#include "tables.hpp"
#include "trellis.hpp"

namespace laq {
namespace {

// The width of what dot products see: levels are bytes; trits stay codes, and in bytes none lies higher than others.
constexpr int seen_width(int tag) { return is_trits(tag) ? 4 : is_integer(tag) ? tag : 8; }

// Codes of a tile with five trits a byte, by slot; slots that fill no byte follow with two bits a code.
template <class I>
LAQ_INLINE void unpack_trits(const uint8_t *tile, int n_slots, uint8_t *out) {
    for (; n_slots >= kTritsOfByte; n_slots -= kTritsOfByte, tile += kLineBytes, out += kTritsOfByte * kLineBytes) {
        for (int part = 0; part < kLineBytes; part += kLineBytes / I::kParts) {
            auto rest = I::load(tile + part);
#pragma GCC unroll 5
            for (int slot = 0; slot < kTritsOfByte; slot++) I::store(out + kLineBytes * slot + part, I::next_trit(rest));
        }
    }
    for (int i = 0; i < kLineBytes / 8 * n_slots; i++) {
        const uint64_t eight = I::template spread<2>(load_bytes<2>(tile + 2 * i));
        memcpy(out + 8 * i, &eight, sizeof eight);
    }
}

// A tile as dot products see it, codes of integers times 2 ** UP, by slot: out[group_size / 4][64].
template <class I, int TAG, int UP>
LAQ_INLINE void unpack_seen(const uint8_t *tile, int group_size, const uint8_t *table, uint8_t *out) {
    constexpr int width = width_of(TAG);
    const int n_bricks = group_size / kBrickColumns;
    if constexpr (is_trellis(TAG)) {
        trellis_tile<I, width>(tile, n_bricks, out);
    } else if constexpr (is_trits(TAG)) {
        unpack_trits<I>(tile, group_size / 4, out);
    } else {
        unpack_tile<I, width, UP>(tile, n_bricks, out);
    }
    if constexpr (is_table(TAG) && !is_trits(TAG)) {
        const typename I::Sixteen entries(table);
        for (int at = 0; at < kLineBytes / 4 * group_size; at += kLineBytes / I::kParts) {
            I::store(out + at, entries.entries(I::load(out + at)));
        }
    }
}

// The function of a tier: levels of a tile as bytes [16, group_size].
template <class I>
void levels_kernel(const uint8_t *tile, int tag, int group_size, const uint8_t *palettes, uint8_t *out) {
    alignas(64) uint8_t slots[32 * kLineBytes];
    const uint8_t *table = is_table(tag) ? table_of(tag, palettes) : nullptr;
    by_tag(tag, [&](auto its) __attribute__((always_inline)) {
        unpack_seen<I, decltype(its)::value, 0>(tile, group_size, table, slots);
    });
    const int first = is_trits(tag) ? table[0] : 0;
    for (int i = 0; i < kLineBytes / 4 * group_size; i++) slots[i] = static_cast<uint8_t>(slots[i] + first);
    for (int slot = 0; slot < group_size / 4; slot++) {
        for (int row = 0; row < kTileRows; row++) {
            memcpy(out + row * group_size + 4 * slot, slots + kLineBytes * slot + 4 * row, 4);
        }
    }
}

}  // namespace
}  // namespace laq
