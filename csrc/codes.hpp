// Lines of bits to bytes of codes, written once over an instruction set `I`; see kernels.hpp.
#pragma once

#include <string.h>

#include "tier.hpp"

namespace laq {
namespace {

// Memory is asked for in the second-level cache: the first has too few buffers for all that is on its way.
LAQ_INLINE void ask_for(const void *p) { __builtin_prefetch(p, 0, 2); }

template <int... S>
struct Sequence {};
using Slots = Sequence<0, 1, 2, 3, 4, 5, 6, 7>;

// The numbers of slot S in a field of WIDTH bits, at bit TO of each byte. Slots that need the same shift of the same
// line share it.
template <class I, int WIDTH, int S, int TO>
LAQ_INLINE typename I::Bytes field(const uint8_t *lines, int part) {
    constexpr int in_line = 8 / WIDTH, mask = ((1 << WIDTH) - 1) << TO;
    const auto line = I::load(lines + kLineBytes * (S / in_line) + part);
    return I::template masked<mask>(I::template shifted<WIDTH * (S % in_line) - TO>(line));
}

// Codes of slot S of a brick of B bits at p, times 2 ** UP, for the part of its lines that starts at byte `part`.
template <class I, int B, int S, int UP>
LAQ_INLINE typename I::Bytes slot_codes(const uint8_t *p, int part) {
    if constexpr (B == 8) {
        return I::load(p + kLineBytes * S + part);
    } else if constexpr (B == 4 || B == 2 || B == 1) {
        return field<I, B, S, UP>(p, part);
    } else {
        constexpr int first = B > 4 ? 4 : 2, second = B - first;
        return I::either(field<I, first, S, UP + second>(p, part),
                         field<I, second, S, UP>(p + kLineBytes * first, part));
    }
}

template <class I, int B, int UP, int... S>
LAQ_INLINE void store_brick(const uint8_t *p, int part, uint8_t *out, Sequence<S...>) {
    (I::store(out + kLineBytes * S + part, slot_codes<I, B, S, UP>(p, part)), ...);
}

// A tile's codes times 2 ** UP, by slot: out[group_size / 4][64].
template <class I, int B, int UP>
LAQ_INLINE void unpack_tile(const uint8_t *tile, int n_bricks, uint8_t *out) {
    for (int brick = 0; brick < n_bricks; brick++) {
        for (int part = 0; part < kLineBytes; part += kLineBytes / I::kParts) {
            store_brick<I, B, UP>(tile + kLineBytes * B * brick, part, out + 8 * kLineBytes * brick, Slots{});
        }
    }
}

}  // namespace
}  // namespace laq
