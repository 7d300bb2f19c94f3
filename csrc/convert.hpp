// float32, bfloat16, float16 and stored scales, in plain integer arithmetic: the same bits on every machine.
//
// All is in an anonymous namespace: kernels.hpp says why.
#pragma once

#include <stdint.h>
#include <string.h>

#include "laq.h"

namespace laq {
namespace {

// 2 ** (i / 8), correctly rounded, as bits; twice, for vectors of 16.
alignas(64) const uint32_t kEighths[16] = {
    0x3f800000, 0x3f8b95c2, 0x3f9837f0, 0x3fa5fed7, 0x3fb504f3, 0x3fc5672a, 0x3fd744fd, 0x3feac0c7,
    0x3f800000, 0x3f8b95c2, 0x3f9837f0, 0x3fa5fed7, 0x3fb504f3, 0x3fc5672a, 0x3fd744fd, 0x3feac0c7,
};

inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// 2 ** (octave - 16 + step / 8) for a stored log8 byte.
inline float log_scale(int step, int octave) {
    return as_float(kEighths[step & 7] + (static_cast<uint32_t>(octave - 16 + (step >> 3)) << 23));
}

inline float from_bfloat16(uint16_t half) { return as_float(static_cast<uint32_t>(half) << 16); }

inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = as_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);  // stays NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_float16(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff, exponent = half & 0x7c00;
    float value = as_float((magnitude << 13) + (112u << 23));
    if (exponent == 0) value = static_cast<float>(magnitude) * 0x1p-24f;
    if (exponent == 0x7c00) value = as_float(magnitude << 13 | 0x7f800000u);
    return (half & 0x8000) != 0 ? -value : value;
}

inline uint16_t to_float16(float value) {
    const uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 rounds to infinity
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the result in the last bits, rounded
        return static_cast<uint16_t>(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// The 16-bit type of `type`, LAQ_BFLOAT16 or LAQ_FLOAT16.
inline float from_half(int32_t type, uint16_t half) {
    return type == LAQ_BFLOAT16 ? from_bfloat16(half) : from_float16(half);
}
inline uint16_t to_half(int32_t type, float value) {
    return type == LAQ_BFLOAT16 ? to_bfloat16(value) : to_float16(value);
}

}  // namespace
}  // namespace laq
