// Products of rows of floats, for weights that are not packed; included by every tier through kernels.hpp.
#pragma once

#include "convert.hpp"
#include "tier.hpp"

namespace laq {
namespace {

constexpr int kPartialSums = 16;      // products of two rows are added up in 16 sums
constexpr int kRowsAtOnce = 16;  // their sums are put together side by side

inline int64_t in_sums(int64_t width) { return (width + kPartialSums - 1) / kPartialSums * kPartialSums; }

// A row as float32 padded with zeros: where it lies, if it is that already.
inline const float *float_row(const void *data, int32_t type, int64_t at, int64_t stride, int64_t width, float *out) {
    if (type == LAQ_FLOAT32) {
        const float *row = static_cast<const float *>(data) + at;
        if (stride == 1 && width % kPartialSums == 0) return row;
        for (int64_t i = 0; i < width; i++) out[i] = row[i * stride];
    } else {
        const uint16_t *row = static_cast<const uint16_t *>(data) + at;
        for (int64_t i = 0; i < width; i++) out[i] = from_half(type, row[i * stride]);
    }
    for (int64_t i = width; i < in_sums(width); i++) out[i] = 0.0f;
    return out;
}

inline void store_float(const laq_step &step, int64_t at, float value) {
    if (step.types[0] == LAQ_FLOAT32) {
        static_cast<float *>(step.data[0])[at] = value;
    } else {
        static_cast<uint16_t *>(step.data[0])[at] = to_half(step.types[0], value);
    }
}

// Sums of products in 16 lanes.
template <class I>
void dot_sums(const float *a, const float *b, int64_t width, float *out) {
    constexpr int step = kPartialSums / I::kParts;
    typename I::Floats sums[I::kParts];
    for (int part = 0; part < I::kParts; part++) sums[part] = I::zeros();
    for (int64_t i = 0; i < width; i += kPartialSums) {
        for (int part = 0; part < I::kParts; part++) {
            const int64_t at = i + step * part;
            sums[part] = I::multiply_add(I::load_floats(a + at), I::load_floats(b + at), sums[part]);
        }
    }
    for (int part = 0; part < I::kParts; part++) I::store_floats(out + step * part, sums[part]);
}

// The 16 lanes of each of 16 rows to one number, in one order.
inline void add_sums(float (*sums)[kPartialSums]) {
    for (int half = kPartialSums / 2; half > 0; half /= 2) {
        for (int row = 0; row < kRowsAtOnce; row++) {
            for (int i = 0; i < half; i++) sums[row][i] += sums[row][i + half];
        }
    }
}

// Columns `first` to `last` of one row of a LAQ_MATMUL step; scratch holds two rows.
template <class I>
void multiply_kernel(const laq_step &step, int64_t batch, int64_t row, int64_t first, int64_t last, float *scratch) {
    const int64_t width = step.sizes[3], padded = in_sums(width);
    const auto *s = step.strides;
    const float *a = float_row(step.data[1], step.types[1], batch * s[1][0] + row * s[1][1], s[1][3], width, scratch);
    for (int64_t start = first; start < last; start += kRowsAtOnce) {
        alignas(64) float products[kRowsAtOnce][kPartialSums] = {};
        const int64_t count = last - start < kRowsAtOnce ? last - start : kRowsAtOnce;
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = batch * s[2][0] + (start + i) * s[2][2];
            dot_sums<I>(a, float_row(step.data[2], step.types[2], at, s[2][3], width, scratch + padded), padded,
                         products[i]);
        }
        add_sums(products);
        for (int64_t i = 0; i < count; i++) {
            store_float(step, batch * s[0][0] + row * s[0][1] + (start + i) * s[0][2], products[i][0]);
        }
    }
}

}  // namespace
}  // namespace laq
