// AVX-512 with VNNI: a line is one vector of 16 rows. With GFNI a field is one instruction.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"

namespace laq {
namespace {

struct Avx512 {
    using Bytes = __m512i;
    using Ints = __m512i;
    using Floats = __m512;
    static constexpr int kParts = 1;
    static constexpr int kBlock = 12;
    static constexpr int kOffset8 = 0;

    static LAQ_INLINE Bytes load(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static LAQ_INLINE void store(uint8_t *p, Bytes a) { _mm512_storeu_si512(p, a); }

#if defined(__GFNI__)
    // Bit i of a result byte is the product of matrix row 7 - i and the byte: rows pick single bits.
    static constexpr uint64_t picker(int position, int width, int up) {
        uint64_t rows = 0;
        for (int i = 0; i < width; i++) rows |= (uint64_t{1} << (position + i)) << (8 * (7 - (up + i)));
        return rows;
    }
    template <int POSITION, int WIDTH, int UP>
    static LAQ_INLINE Bytes field(Bytes a) {
        constexpr uint64_t rows = picker(POSITION, WIDTH, UP);
        return _mm512_gf2p8affine_epi64_epi8(a, _mm512_set1_epi64(static_cast<long long>(rows)), 0);
    }
#else
    // Shifts work on 16 bits: what crosses a byte is masked away.
    template <int POSITION, int WIDTH, int UP>
    static LAQ_INLINE Bytes field(Bytes a) {
        if constexpr (POSITION > UP) a = _mm512_srli_epi16(a, POSITION - UP);
        if constexpr (POSITION < UP) a = _mm512_slli_epi16(a, UP - POSITION);
        return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(((1 << WIDTH) - 1) << UP)));
    }
#endif
    static LAQ_INLINE Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

    static LAQ_INLINE Bytes repeat4(const int8_t *p) {
        int32_t four;
        memcpy(&four, p, 4);
        return _mm512_set1_epi32(four);
    }
    template <int B>
    static LAQ_INLINE Ints dot(Ints a, Bytes codes, Bytes x) { return _mm512_dpbusd_epi32(a, codes, x); }

    static LAQ_INLINE Ints repeat(int32_t a) { return _mm512_set1_epi32(a); }
    static LAQ_INLINE Ints widen(const uint8_t *p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static LAQ_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static LAQ_INLINE Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
    static LAQ_INLINE Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
    static LAQ_INLINE Ints times256(Ints a) { return _mm512_slli_epi32(a, 8); }

    static LAQ_INLINE Floats zeros() { return _mm512_setzero_ps(); }
    static LAQ_INLINE Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
    static LAQ_INLINE Floats times(Floats a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
    static LAQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static LAQ_INLINE Floats load_floats(const float *p) { return _mm512_loadu_ps(p); }
    static LAQ_INLINE void store_floats(float *p, Floats a) { _mm512_storeu_ps(p, a); }

    static LAQ_INLINE Floats log_scales(const uint8_t *p, int octave) {
        const Ints stored = widen(p);
        const Ints eighths = _mm512_permutexvar_epi32(stored, _mm512_load_si512(kEighths));  // repeats after 8
        const Ints exponents = _mm512_add_epi32(_mm512_srli_epi32(stored, 3), _mm512_set1_epi32(octave - 16));
        return _mm512_castsi512_ps(_mm512_add_epi32(eighths, _mm512_slli_epi32(exponents, 23)));
    }
    static LAQ_INLINE Floats half_scales(const uint16_t *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }

    template <int B>
    static LAQ_INLINE uint64_t spread(uint64_t word) {
        return _pdep_u64(word, 0x0101010101010101ull * ((1u << B) - 1));
    }
};

}  // namespace
}  // namespace laq
