// Inputs to integers, a group at a time; see kernels.hpp.
#pragma once

#include "convert.hpp"
#include "tier.hpp"

namespace laq {
namespace {

// Magnitudes below count as zero: their reciprocal would overflow.
constexpr float kSmallest = 1e-30f;

// The function of a tier. Plain loops: each is a form that compilers vectorize without leave to reorder float operations.
inline bool quantize_kernel(const float *x, int64_t n_groups, int group_size, int bits, int64_t input,
                            int64_t n_inputs, int8_t *high, int8_t *low, float *scales, int32_t *sums) {
    const float limit = bits == 16 ? 32512.0f : 127.0f;
    for (int64_t group = 0; group < n_groups; group++, x += group_size) {
        uint32_t largest = 0;  // magnitudes compare like their bits
        for (int i = 0; i < group_size; i++) {
            const uint32_t magnitude = as_bits(x[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest >= 0x7f800000u) return false;
        const float top = as_float(largest);
        const float inverse = top < kSmallest ? 0.0f : limit / top;
        const int64_t place = group * n_inputs + input;
        int32_t values[128], sum = 0;
        for (int i = 0; i < group_size; i++) {
            values[i] = static_cast<int32_t>(__builtin_rintf(x[i] * inverse));
            sum += values[i];
        }
        int8_t *top_plane = high + place * group_size;
        if (bits == 16) {
            int8_t *bottom_plane = low + place * group_size;
            for (int i = 0; i < group_size; i++) {
                const int32_t upper = (values[i] + 128) >> 8;
                top_plane[i] = static_cast<int8_t>(upper);
                bottom_plane[i] = static_cast<int8_t>(values[i] - 256 * upper);
            }
        } else {
            for (int i = 0; i < group_size; i++) {
                top_plane[i] = static_cast<int8_t>(values[i]);
            }
        }
        scales[place] = top < kSmallest ? 0.0f : top / limit;
        sums[place] = sum;
    }
    return true;
}

}  // namespace
}  // namespace laq
