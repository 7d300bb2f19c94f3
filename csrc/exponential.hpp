// exp in float32 from plain operations: compilers vectorize it, and every machine gets the same bits.
#pragma once

#include "convert.hpp"

namespace laq {
namespace {

// Within 4 units of the last place; 0 below -87.3, where denormal numbers begin, and infinite above 88.72.
inline float exponential(float x) {
    constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    constexpr float rounder = 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds to an integer
    constexpr float lowest = -87.3f, highest = 88.72284f;
    const float inside = x < highest ? x : highest;  // NaN fails the comparison; the last line brings it back
    const float clipped = inside > lowest ? inside : lowest;
    const float nearest = (clipped * log2e + rounder) - rounder;
    const float n = nearest < 127.0f ? nearest : 127.0f;  // 2 ** 128 is no float
    const float r = (clipped - n * ln2_high) - n * ln2_low;
    // Cephes expf
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float power = as_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
    const float result = (p * (r * r) + r + 1.0f) * power;
    const float bounded = x < lowest ? 0.0f : result;
    return x > highest ? __builtin_inff() : x == x ? bounded : x;
}

}  // namespace
}  // namespace laq
