// NEON with the dot product extension: a line is four vectors of 4 rows.
#pragma once

#include <arm_neon.h>

#include "kernels.hpp"

namespace laq {
namespace {

struct Neon {
    using Bytes = uint8x16_t;
    using Ints = int32x4_t;
    using Floats = float32x4_t;
    static constexpr int kParts = 4;
    static constexpr int kFew = 1;
    static constexpr int kBlock = 8;
    // The dot product takes signed bytes: codes of 8 bits are moved down by 128, and zero points with them.
    static constexpr int kOffset8 = 128;

    static LAQ_INLINE Bytes load(const uint8_t *p) { return vld1q_u8(p); }
    static LAQ_INLINE void store(uint8_t *p, Bytes a) { vst1q_u8(p, a); }

    template <int BY>
    static LAQ_INLINE Bytes shifted(Bytes a) {
        if constexpr (BY > 0) a = vshrq_n_u8(a, BY);
        if constexpr (BY < 0) a = vshlq_n_u8(a, -BY);
        return a;
    }
    template <int M>
    static LAQ_INLINE Bytes masked(Bytes a) { return vandq_u8(a, vdupq_n_u8(M)); }
    static LAQ_INLINE Bytes either(Bytes a, Bytes b) { return vorrq_u8(a, b); }

    // 64 entries at a time; what lies beyond them stays as it is.
    struct Table {
        explicit LAQ_INLINE Table(const uint8_t *p)
            : quarters{vld1q_u8_x4(p), vld1q_u8_x4(p + 64), vld1q_u8_x4(p + 128), vld1q_u8_x4(p + 192)} {}
        LAQ_INLINE Bytes entries(Bytes a) const {
            Bytes r = vqtbl4q_u8(quarters[0], a);
            for (int i = 1; i < 4; i++) {
                a = vsubq_u8(a, vdupq_n_u8(64));
                r = vqtbx4q_u8(r, quarters[i], a);
            }
            return r;
        }
        uint8x16x4_t quarters[4];
    };

    struct Sixteen {
        explicit LAQ_INLINE Sixteen(const uint8_t *p) : row(vld1q_u8(p)) {}
        LAQ_INLINE Bytes entries(Bytes a) const { return vqtbl1q_u8(row, a); }
        Bytes row;
    };

    // From 86 up a digit is 1, from 171 up 2; true is -1.
    static LAQ_INLINE Bytes next_trit(Bytes &rest) {
        const Bytes one = vcgeq_u8(rest, vdupq_n_u8(86)), two = vcgeq_u8(rest, vdupq_n_u8(171));
        rest = vaddq_u8(rest, vaddq_u8(rest, rest));
        return vsubq_u8(vdupq_n_u8(0), vaddq_u8(one, two));
    }

    static LAQ_INLINE int8x16_t repeat4(const int8_t *p) {
        int32_t four;
        memcpy(&four, p, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    template <int B>
    static LAQ_INLINE Ints dot(Ints a, Bytes codes, int8x16_t x) {
        if constexpr (B == 8) codes = veorq_u8(codes, vdupq_n_u8(128));
        return vdotq_s32(a, vreinterpretq_s8_u8(codes), x);
    }

    static LAQ_INLINE Ints repeat(int32_t a) { return vdupq_n_s32(a); }
    static LAQ_INLINE Ints widen(uint64_t low, uint64_t high, int part) {
        const uint64_t four = (part < 2 ? low : high) >> (32 * (part & 1));
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
    }
    static LAQ_INLINE Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
    static LAQ_INLINE Ints subtract(Ints a, Ints b) { return vsubq_s32(a, b); }
    static LAQ_INLINE Ints multiply(Ints a, Ints b) { return vmulq_s32(a, b); }
    template <int N>
    static LAQ_INLINE Ints up(Ints a) { return vshlq_n_s32(a, N); }
    template <int N>
    static LAQ_INLINE Ints down(Ints a) { return vshrq_n_s32(a, N); }

    static LAQ_INLINE Floats zeros() { return vdupq_n_f32(0); }
    static LAQ_INLINE Floats to_float(Ints a) { return vcvtq_f32_s32(a); }
    static LAQ_INLINE Floats times(Floats a, float b) { return vmulq_n_f32(a, b); }
    static LAQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
    static LAQ_INLINE Floats load_floats(const float *p) { return vld1q_f32(p); }
    static LAQ_INLINE void store_floats(float *p, Floats a) { vst1q_f32(p, a); }

    static LAQ_INLINE Floats log_scales(Ints stored, int octave) {
        int32_t steps[4];
        vst1q_s32(steps, stored);
        float values[4];
        for (int i = 0; i < 4; i++) values[i] = log_scale(steps[i], octave);
        return vld1q_f32(values);
    }
    static LAQ_INLINE Floats half_scales(const uint8_t *p) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
    }

    template <int B>
    static LAQ_INLINE uint64_t spread(uint64_t word) { return spread_bits<B>(word); }
};

}  // namespace
}  // namespace laq
