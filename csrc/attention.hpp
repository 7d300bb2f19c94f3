// softmax(q k' scale + mask) v for a few queries of one head; included by every tier through kernels.hpp.
#pragma once

#include "dense.hpp"
#include "exponential.hpp"

namespace laq {
namespace {

// What is added to the product of one query and key; minus infinity: they do not meet.
inline float mask_at(const laq_attention &a, int64_t at) {
    if (a.mask == nullptr) return 0.0f;
    if (a.mask_type == LAQ_BOOL) return static_cast<const uint8_t *>(a.mask)[at] != 0 ? 0.0f : -__builtin_inff();
    if (a.mask_type == LAQ_FLOAT32) return static_cast<const float *>(a.mask)[at];
    return from_half(a.mask_type, static_cast<const uint16_t *>(a.mask)[at]);
}

template <class I>
void add_scaled(const float *row, float factor, int64_t width, float *out) {
    constexpr int step = kPartialSums / I::kParts;
    alignas(64) float factors[kPartialSums];
    for (float &f : factors) f = factor;
    const auto repeated = I::load_floats(factors);
    for (int64_t i = 0; i < width; i += step) {
        I::store_floats(out + i, I::multiply_add(I::load_floats(row + i), repeated, I::load_floats(out + i)));
    }
}

// exp(s - max) in place, their sum in 16 lanes; the number of scores is a multiple of 16.
inline float softmax_weights(float *scores, int64_t n) {
    float top = -__builtin_inff();
    for (int64_t i = 0; i < n; i++) top = scores[i] > top ? scores[i] : top;
    if (top == -__builtin_inff()) top = 0.0f;
    float sums[kRowsAtOnce][kPartialSums] = {};
    for (int64_t i = 0; i < n; i += kPartialSums) {
        for (int lane = 0; lane < kPartialSums; lane++) {
            scores[i + lane] = exponential(scores[i + lane] - top);
            sums[0][lane] += scores[i + lane];
        }
    }
    add_sums(sums);
    return sums[0][0];
}

// Floats of scratch that `attend_kernel` needs.
inline int64_t attention_scratch(const laq_step &step) {
    const auto &a = *static_cast<const laq_attention *>(step.details);
    return in_sums(step.sizes[3]) + 2 * in_sums(a.width) + 2 * in_sums(a.value_width);
}

template <class I>
void attend_kernel(const laq_step &step, int64_t batch, int64_t head, int64_t query, float *scratch) {
    const auto &a = *static_cast<const laq_attention *>(step.details);
    const auto place = [&](int operand, int64_t position) {
        const int64_t *s = step.strides[operand];
        return batch * s[0] + head * s[1] + position * s[2];
    };
    const int64_t n_keys = step.sizes[3], mask_start = batch * a.mask_strides[0] + head * a.mask_strides[1] +
                                                       query * a.mask_strides[2];
    int64_t first = 0, last = n_keys;
    if (a.mask != nullptr) {
        while (last > 0 && mask_at(a, mask_start + (last - 1) * a.mask_strides[3]) == -__builtin_inff()) last--;
        while (first < last && mask_at(a, mask_start + first * a.mask_strides[3]) == -__builtin_inff()) first++;
    }
    float *scores = scratch, *query_row = scores + in_sums(n_keys), *row = query_row + in_sums(a.width);
    float *sums = row + (a.width > a.value_width ? in_sums(a.width) : in_sums(a.value_width));
    const float *q = float_row(step.data[1], step.types[1], place(1, query), step.strides[1][3], a.width, query_row);
    const int64_t n = last - first;
    for (int64_t start = 0; start < n; start += kRowsAtOnce) {
        alignas(64) float products[kRowsAtOnce][kPartialSums] = {};
        const int64_t count = n - start < kRowsAtOnce ? n - start : kRowsAtOnce;
        for (int64_t i = 0; i < count; i++) {
            const float *k = float_row(step.data[2], step.types[2], place(2, first + start + i), step.strides[2][3],
                                       a.width, row);
            dot_sums<I>(q, k, in_sums(a.width), products[i]);
        }
        add_sums(products);
        for (int64_t i = 0; i < kRowsAtOnce; i++) {
            scores[start + i] = i < count ? products[i][0] * a.scale +
                                                mask_at(a, mask_start + (first + start + i) * a.mask_strides[3])
                                          : -__builtin_inff();
        }
    }
    const float total = softmax_weights(scores, in_sums(n));
    for (int64_t i = 0; i < in_sums(a.value_width); i++) sums[i] = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        const float *v = float_row(step.data[3], step.types[3], place(3, first + i), step.strides[3][3], a.value_width,
                                   row);
        add_scaled<I>(v, scores[i], in_sums(a.value_width), sums);
    }
    for (int64_t i = 0; i < a.value_width; i++) {
        store_float(step, place(0, query) + i * step.strides[0][3], total == 0.0f ? 0.0f : sums[i] / total);
    }
}

}  // namespace
}  // namespace laq
