// AVX-512 with VNNI: a line is one vector of 16 rows.
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
    static constexpr int kFew = 4;
    static constexpr int kBlock = 12;
    static constexpr int kOffset8 = 0;

    static LAQ_INLINE Bytes load(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static LAQ_INLINE void store(uint8_t *p, Bytes a) { _mm512_storeu_si512(p, a); }

    // In units of 16 bits.
    template <int BY>
    static LAQ_INLINE Bytes shifted(Bytes a) {
        if constexpr (BY > 0) a = _mm512_srli_epi16(a, BY);
        if constexpr (BY < 0) a = _mm512_slli_epi16(a, -BY);
        return a;
    }
    template <int M>
    static LAQ_INLINE Bytes masked(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(M)); }
    static LAQ_INLINE Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

#if defined(__AVX512VBMI__)
    // Half of the entries at a time; the sign bit of a byte says which half.
    struct Table {
        explicit LAQ_INLINE Table(const uint8_t *p) : quarters{load(p), load(p + 64), load(p + 128), load(p + 192)} {}
        LAQ_INLINE Bytes entries(Bytes a) const {
            const Bytes first = _mm512_permutex2var_epi8(quarters[0], a, quarters[1]);
            const Bytes second = _mm512_permutex2var_epi8(quarters[2], a, quarters[3]);
            return _mm512_mask_blend_epi8(_mm512_movepi8_mask(a), first, second);
        }
        Bytes quarters[4];
    };
#else
    // Sixteen entries at a time, wherever the upper half of a byte names them.
    struct Table {
        explicit LAQ_INLINE Table(const uint8_t *p) {
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                rows[i] = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(p + 16 * i)));
            }
        }
        LAQ_INLINE Bytes entries(Bytes a) const {
            const Bytes upper = _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(0xf0)));
            const Bytes lower = _mm512_and_si512(a, _mm512_set1_epi8(15));
            Bytes r = _mm512_shuffle_epi8(rows[0], lower);
#pragma GCC unroll 15
            for (int i = 1; i < 16; i++) {
                const __mmask64 here = _mm512_cmpeq_epi8_mask(upper, _mm512_set1_epi8(static_cast<char>(16 * i)));
                r = _mm512_mask_shuffle_epi8(r, here, rows[i], lower);
            }
            return r;
        }
        Bytes rows[16];
    };
#endif

    struct Sixteen {
        explicit LAQ_INLINE Sixteen(const uint8_t *p)
            : row(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))) {}
        LAQ_INLINE Bytes entries(Bytes a) const { return _mm512_shuffle_epi8(row, a); }
        Bytes row;
    };

    // Above 85 a digit is 1, above 170 it is 2.
    static LAQ_INLINE Bytes next_trit(Bytes &rest) {
        const Bytes ones = _mm512_set1_epi8(1);
        const __mmask64 two = _mm512_cmpgt_epu8_mask(rest, _mm512_set1_epi8(static_cast<char>(170)));
        const Bytes one = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(rest, _mm512_set1_epi8(85)), ones);
        rest = _mm512_add_epi8(rest, _mm512_add_epi8(rest, rest));
        return _mm512_mask_add_epi8(one, two, one, ones);
    }

    // Repeated by the product itself. As an instruction: GCC 12 would repeat them into a register first.
    struct Four { int8_t v[4]; };
    static LAQ_INLINE const Four &repeat4(const int8_t *p) { return *reinterpret_cast<const Four *>(p); }
    template <int B>
    static LAQ_INLINE Ints dot(Ints a, Bytes codes, const Four &x) {
#if defined(__SANITIZE_ADDRESS__)  // which sees no read of an instruction
        int32_t four;
        memcpy(&four, &x, 4);
        return _mm512_dpbusd_epi32(a, codes, _mm512_set1_epi32(four));
#else
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(a) : "v"(codes), "m"(x));
        return a;
#endif
    }

    static LAQ_INLINE Ints repeat(int32_t a) { return _mm512_set1_epi32(a); }
    static LAQ_INLINE Ints widen(uint64_t low, uint64_t high, int) {
        return _mm512_cvtepu8_epi32(_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low)));
    }
    static LAQ_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static LAQ_INLINE Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
    static LAQ_INLINE Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
    template <int N>
    static LAQ_INLINE Ints up(Ints a) { return _mm512_slli_epi32(a, N); }
    template <int N>
    static LAQ_INLINE Ints down(Ints a) { return _mm512_srai_epi32(a, N); }

    static LAQ_INLINE Floats zeros() { return _mm512_setzero_ps(); }
    static LAQ_INLINE Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
    static LAQ_INLINE Floats times(Floats a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
    static LAQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static LAQ_INLINE Floats load_floats(const float *p) { return _mm512_loadu_ps(p); }
    static LAQ_INLINE void store_floats(float *p, Floats a) { _mm512_storeu_ps(p, a); }

    static LAQ_INLINE Floats log_scales(Ints stored, int octave) {
        const Ints table = _mm512_add_epi32(_mm512_load_si512(kEighths), repeat((octave - 16) * (1 << 23)));
        const Ints eighths = _mm512_permutexvar_epi32(stored, table);  // repeats after 8
        const Ints octaves = _mm512_and_si512(_mm512_slli_epi32(stored, 20), repeat(0x1f << 23));
        return _mm512_castsi512_ps(_mm512_add_epi32(eighths, octaves));
    }
    static LAQ_INLINE Floats half_scales(const uint8_t *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }

    template <int B>
    static LAQ_INLINE uint64_t spread(uint64_t word) {
        return _pdep_u64(word, 0x0101010101010101ull * ((1u << B) - 1));
    }
};

}  // namespace
}  // namespace laq
