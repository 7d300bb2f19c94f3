// Codes of a trellis to what they stand for; see docs/FORMAT.md and kernels.hpp.
#pragma once

#include "codes.hpp"
#include "trellis_tables.hpp"

namespace laq {
namespace {

template <class I, int B, int BACK>
LAQ_INLINE typename I::Bytes window_before(const uint8_t *codes) {
    if constexpr (B * BACK >= 8) {
        return I::template masked<0>(I::load(codes));  // nothing
    } else {
        constexpr int mask = 0xff << (B * BACK) & 0xff;
        const auto moved = I::template masked<mask>(I::template shifted<-B * BACK>(I::load(codes - 4 * BACK)));
        if constexpr (B * (BACK + 1) >= 8) {
            return moved;
        } else {
            return I::either(moved, window_before<I, B, BACK + 1>(codes));
        }
    }
}

// Levels of slots first to last: out[slots][64].
template <class I, int B>
LAQ_INLINE void levels_of_slots(const uint8_t *codes, int n_slots, uint8_t *out) {
    const typename I::Table table(kTrellis[B]);
    for (int at = 0; at < kLineBytes * n_slots; at += kLineBytes / I::kParts) {
        const auto window = I::either(I::load(codes + at), window_before<I, B, 1>(codes + at));
        I::store(out + at, table.entries(window));
    }
}

// The levels of a tile of B bits, by slot: out[group_size / 4][64].
template <class I, int B>
LAQ_INLINE void trellis_tile(const uint8_t *tile, int n_bricks, uint8_t *out) {
    alignas(64) uint8_t chains[33 * kLineBytes];  // by slot, after a line of zeros: the code before lies four bytes before
    memset(chains, 0, kLineBytes);
    unpack_tile<I, B, 0>(tile, n_bricks, chains + kLineBytes);
    levels_of_slots<I, B>(chains + kLineBytes, 8 * n_bricks, out);
}

// The function of a tier: levels of a trellis tile of `bits` bits as bytes [16, group_size].
template <class I>
void levels_kernel(const uint8_t *tile, int bits, int group_size, uint8_t *out) {
    alignas(64) uint8_t slots[32 * kLineBytes];
    const int n_bricks = group_size / kBrickColumns;
    switch (bits) {
        case 1: trellis_tile<I, 1>(tile, n_bricks, slots); break;
        case 2: trellis_tile<I, 2>(tile, n_bricks, slots); break;
        case 3: trellis_tile<I, 3>(tile, n_bricks, slots); break;
        case 4: trellis_tile<I, 4>(tile, n_bricks, slots); break;
        case 5: trellis_tile<I, 5>(tile, n_bricks, slots); break;
        default: trellis_tile<I, 6>(tile, n_bricks, slots); break;
    }
    store_by_row(slots, group_size, out);
}

}  // namespace
}  // namespace laq
