// AVX2: a line is two vectors of 8 rows. With AVX-VNNI the dot product is one instruction.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"

namespace laq {
namespace {

struct Avx2 {
    using Bytes = __m256i;
    using Ints = __m256i;
    using Floats = __m256;
    static constexpr int kParts = 2;
    static constexpr int kFew = 1;
#if defined(__AVXVNNI__)
    static constexpr int kBlock = 12;
#else
    static constexpr int kBlock = 8;
#endif
    static constexpr int kOffset8 = 0;

    static LAQ_INLINE Bytes load(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static LAQ_INLINE void store(uint8_t *p, Bytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), a); }

    // In units of 16 bits.
    template <int BY>
    static LAQ_INLINE Bytes shifted(Bytes a) {
        if constexpr (BY > 0) a = _mm256_srli_epi16(a, BY);
        if constexpr (BY < 0) a = _mm256_slli_epi16(a, -BY);
        return a;
    }
    template <int M>
    static LAQ_INLINE Bytes masked(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(M)); }
    static LAQ_INLINE Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }

    // Sixteen entries at a time: a byte that does not name them gets its sign bit set, and a zero.
    struct Table {
        explicit LAQ_INLINE Table(const uint8_t *p) : bytes(p) {}
        LAQ_INLINE Bytes entries(Bytes a) const {
            Bytes r = _mm256_setzero_si256();
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i *>(bytes + 16 * i));
                const Bytes from = _mm256_xor_si256(a, _mm256_set1_epi8(static_cast<char>(16 * i)));
                const Bytes index = _mm256_adds_epu8(from, _mm256_set1_epi8(0x70));
                r = _mm256_or_si256(r, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(sixteen), index));
            }
            return r;
        }
        const uint8_t *bytes;
    };

    struct Sixteen {
        explicit LAQ_INLINE Sixteen(const uint8_t *p)
            : row(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))) {}
        LAQ_INLINE Bytes entries(Bytes a) const { return _mm256_shuffle_epi8(row, a); }
        Bytes row;
    };

    // From 86 up a digit is 1, from 171 up 2; true is -1.
    static LAQ_INLINE Bytes next_trit(Bytes &rest) {
        const Bytes one = _mm256_cmpeq_epi8(_mm256_max_epu8(rest, _mm256_set1_epi8(86)), rest);
        const Bytes two = _mm256_cmpeq_epi8(_mm256_max_epu8(rest, _mm256_set1_epi8(static_cast<char>(171))), rest);
        rest = _mm256_add_epi8(rest, _mm256_add_epi8(rest, rest));
        return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
    }

    static LAQ_INLINE Bytes repeat4(const int8_t *p) {
        int32_t four;
        memcpy(&four, p, 4);
        return _mm256_set1_epi32(four);
    }
    template <int B>
    static LAQ_INLINE Ints dot(Ints a, Bytes codes, Bytes x) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(a, codes, x);
#else
        const Ints ones = _mm256_set1_epi16(1);
        if constexpr (B == 8) {  // pairs of products would pass 16 bits: by halves of a byte
            const Bytes nibbles = _mm256_set1_epi8(15);
            const Ints low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibbles), x);
            const Ints high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 4), nibbles), x);
            a = _mm256_add_epi32(a, _mm256_madd_epi16(low, ones));
            return _mm256_add_epi32(a, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
        } else {  // 2 x 127 x 128 < 2 ** 15
            return _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
        }
#endif
    }

    static LAQ_INLINE Ints repeat(int32_t a) { return _mm256_set1_epi32(a); }
    static LAQ_INLINE Ints widen(uint64_t low, uint64_t high, int part) {
        return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(part == 0 ? low : high)));
    }
    static LAQ_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
    static LAQ_INLINE Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
    static LAQ_INLINE Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
    template <int N>
    static LAQ_INLINE Ints up(Ints a) { return _mm256_slli_epi32(a, N); }
    template <int N>
    static LAQ_INLINE Ints down(Ints a) { return _mm256_srai_epi32(a, N); }

    static LAQ_INLINE Floats zeros() { return _mm256_setzero_ps(); }
    static LAQ_INLINE Floats to_float(Ints a) { return _mm256_cvtepi32_ps(a); }
    static LAQ_INLINE Floats times(Floats a, float b) { return _mm256_mul_ps(a, _mm256_set1_ps(b)); }
    static LAQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static LAQ_INLINE Floats load_floats(const float *p) { return _mm256_loadu_ps(p); }
    static LAQ_INLINE void store_floats(float *p, Floats a) { _mm256_storeu_ps(p, a); }

    static LAQ_INLINE Floats log_scales(Ints stored, int octave) {
        const Ints first = _mm256_load_si256(reinterpret_cast<const __m256i *>(kEighths));
        const Ints table = _mm256_add_epi32(first, repeat((octave - 16) * (1 << 23)));
        const Ints eighths = _mm256_permutevar8x32_epi32(table, stored);  // looks at three bits
        const Ints octaves = _mm256_and_si256(_mm256_slli_epi32(stored, 20), repeat(0x1f << 23));
        return _mm256_castsi256_ps(_mm256_add_epi32(eighths, octaves));
    }
    static LAQ_INLINE Floats half_scales(const uint8_t *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }

    template <int B>
    static LAQ_INLINE uint64_t spread(uint64_t word) {
        return _pdep_u64(word, 0x0101010101010101ull * ((1u << B) - 1));
    }
};

}  // namespace
}  // namespace laq
