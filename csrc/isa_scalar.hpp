// Portable C++: the definition of every operation that the other instruction sets must agree with.
#pragma once

#include "kernels.hpp"

namespace laq {
namespace {

struct Scalar {
    struct Bytes { uint8_t v[64]; };
    struct Ints { int32_t v[16]; };
    struct Floats { float v[16]; };
    static constexpr int kParts = 1;
    static constexpr int kFew = 1;
    static constexpr int kBlock = 1;
    static constexpr int kOffset8 = 0;

    static LAQ_INLINE Bytes load(const uint8_t *p) {
        Bytes r;
        memcpy(r.v, p, 64);
        return r;
    }
    static LAQ_INLINE void store(uint8_t *p, const Bytes &a) { memcpy(p, a.v, 64); }

    template <int BY>
    static LAQ_INLINE Bytes shifted(const Bytes &a) {
        Bytes r;
        for (int i = 0; i < 64; i++) r.v[i] = static_cast<uint8_t>(BY < 0 ? a.v[i] << -BY : a.v[i] >> BY);
        return r;
    }
    template <int M>
    static LAQ_INLINE Bytes masked(const Bytes &a) {
        Bytes r;
        for (int i = 0; i < 64; i++) r.v[i] = a.v[i] & M;
        return r;
    }
    static LAQ_INLINE Bytes either(const Bytes &a, const Bytes &b) {
        Bytes r;
        for (int i = 0; i < 64; i++) r.v[i] = a.v[i] | b.v[i];
        return r;
    }

    struct Table {
        explicit Table(const uint8_t *p) : bytes(p) {}
        Bytes entries(const Bytes &a) const {
            Bytes r;
            for (int i = 0; i < 64; i++) r.v[i] = bytes[a.v[i]];
            return r;
        }
        const uint8_t *bytes;
    };

    using Sixteen = Table;

    static LAQ_INLINE Bytes next_trit(Bytes &rest) {
        Bytes r;
        for (int i = 0; i < 64; i++) {
            const int three = 3 * rest.v[i];
            r.v[i] = static_cast<uint8_t>(three >> 8);
            rest.v[i] = static_cast<uint8_t>(three);
        }
        return r;
    }

    // Four neighbouring activations; for all rows alike.
    struct Four { int8_t v[4]; };
    static LAQ_INLINE Four repeat4(const int8_t *p) {
        Four r;
        memcpy(r.v, p, 4);
        return r;
    }
    template <int B>
    static LAQ_INLINE Ints dot(const Ints &a, const Bytes &codes, const Four &x) {
        Ints r;
        for (int i = 0; i < 16; i++) {
            const uint8_t *c = codes.v + 4 * i;
            r.v[i] = a.v[i] + c[0] * x.v[0] + c[1] * x.v[1] + c[2] * x.v[2] + c[3] * x.v[3];
        }
        return r;
    }

    static LAQ_INLINE Ints repeat(int32_t a) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a;
        return r;
    }
    static LAQ_INLINE Ints widen(uint64_t low, uint64_t high, int) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = (i < 8 ? low : high) >> (8 * (i & 7)) & 0xff;
        return r;
    }
    static LAQ_INLINE Ints add(const Ints &a, const Ints &b) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] + b.v[i];
        return r;
    }
    // The difference fits 32 bits, its parts fit as well: 255 x 32512 x 128 < 2 ** 31.
    static LAQ_INLINE Ints subtract(const Ints &a, const Ints &b) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] - b.v[i];
        return r;
    }
    static LAQ_INLINE Ints multiply(const Ints &a, const Ints &b) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] * b.v[i];
        return r;
    }
    template <int N>
    static LAQ_INLINE Ints up(const Ints &a) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] * (1 << N);
        return r;
    }
    // By a power of two that divides them.
    template <int N>
    static LAQ_INLINE Ints down(const Ints &a) {
        Ints r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] / (1 << N);
        return r;
    }

    static LAQ_INLINE Floats zeros() {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = 0.0f;
        return r;
    }
    static LAQ_INLINE Floats to_float(const Ints &a) {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = static_cast<float>(a.v[i]);
        return r;
    }
    static LAQ_INLINE Floats times(const Floats &a, float b) {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = a.v[i] * b;
        return r;
    }
    static LAQ_INLINE Floats multiply_add(const Floats &a, const Floats &b, const Floats &c) {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
        return r;
    }
    static LAQ_INLINE Floats load_floats(const float *p) {
        Floats r;
        memcpy(r.v, p, 64);
        return r;
    }
    static LAQ_INLINE void store_floats(float *p, const Floats &a) { memcpy(p, a.v, 64); }

    static LAQ_INLINE Floats log_scales(const Ints &stored, int octave) {
        Floats r;
        for (int i = 0; i < 16; i++) r.v[i] = log_scale(stored.v[i], octave);
        return r;
    }
    static LAQ_INLINE Floats half_scales(const uint8_t *p) {
        Floats r;
        uint16_t halves[16];
        memcpy(halves, p, 32);
        for (int i = 0; i < 16; i++) r.v[i] = from_float16(halves[i]);
        return r;
    }
    template <int B>
    static LAQ_INLINE uint64_t spread(uint64_t word) { return spread_bits<B>(word); }
};

}  // namespace
}  // namespace laq
