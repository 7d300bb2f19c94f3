// Vectors over the rows of a tile, in the notation of GCC and clang: the same IEEE operations on every instruction
// set, as many rows at a time as it has lanes.
//
// All is in an anonymous namespace: kernels.hpp says why.
#pragma once

#include <stdint.h>
#include <string.h>

#include "tier.hpp"

namespace laq {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Rows __attribute__((vector_size(4 * kLanes)));
typedef int32_t RowInts __attribute__((vector_size(4 * kLanes)));
typedef uint8_t RowBytes __attribute__((vector_size(kLanes)));

LAQ_INLINE Rows load_rows(const float *p) {
    Rows r;
    memcpy(&r, p, sizeof r);
    return r;
}
LAQ_INLINE void store_rows(float *p, Rows a) { memcpy(p, &a, sizeof a); }

LAQ_INLINE Rows all_rows(float value) { return value - Rows{}; }
LAQ_INLINE RowInts all_rows(int32_t value) { return value - RowInts{}; }

LAQ_INLINE RowInts row_bits(Rows a) { return reinterpret_cast<RowInts>(a); }

template <class V>
LAQ_INLINE V smaller(V a, V b) { return a < b ? a : b; }
template <class V>
LAQ_INLINE V larger(V a, V b) { return a > b ? a : b; }

LAQ_INLINE Rows magnitude(Rows a) { return reinterpret_cast<Rows>(row_bits(a) & 0x7fffffff); }

// 0 .. top; what is below zero has the sign bit, so integers compare it in one instruction.
LAQ_INLINE Rows within(Rows a, Rows top) {
    const Rows above = reinterpret_cast<Rows>(larger(row_bits(a), RowInts{}));
    return smaller(above, top);
}

// The nearest whole number, ties to even, of 0 .. 2 ** 22.
LAQ_INLINE Rows nearest(Rows a) {
    const Rows shift = all_rows(0x1p23f);
    return (a + shift) - shift;
}

}  // namespace
}  // namespace laq
