// Codes of a trellis to what they stand for; see docs/FORMAT.md and kernels.hpp.
#pragma once

#include "codes.hpp"
#include "trellis_tables.hpp"

namespace laq {
namespace {

// The bits of a window above those of its own code: BACK codes before, and what is before them.
template <class I, int B, int BACK>
LAQ_INLINE typename I::Bytes window_before(const uint8_t *codes) {
    constexpr int mask = 0xff << (B * BACK) & 0xff;
    const auto moved = I::template masked<mask>(I::template shifted<-B * BACK>(I::load(codes - 4 * BACK)));
    if constexpr (B * (BACK + 1) >= 8) {
        return moved;
    } else {
        return I::either(moved, window_before<I, B, BACK + 1>(codes));
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
    // By slot, after a line of zeros: the code before lies four bytes before.
    alignas(64) uint8_t chains[33 * kLineBytes];
    memset(chains, 0, kLineBytes);
    unpack_tile<I, B, 0>(tile, n_bricks, chains + kLineBytes);
    levels_of_slots<I, B>(chains + kLineBytes, 8 * n_bricks, out);
}

}  // namespace
}  // namespace laq
