// Recorded operations on elements, and along the last axis.
#include <math.h>

#include <algorithm>
#include <vector>

#include "exponential.hpp"
#include "matrix.hpp"

namespace laq {
namespace {

constexpr int64_t kChunk = 256;  // elements computed at a time: four rows of them fit the first-level cache

// ------------------------------------------------------------------ elements

template <class T, class S>
void load_as(const void *data, int64_t at, int64_t stride, int64_t n, T *out) {
    const S *p = static_cast<const S *>(data) + at;
    for (int64_t i = 0; i < n; i++) out[i] = static_cast<T>(p[i * stride]);
}

// n elements of an operand as T: where they lie, if they are that already.
template <class T>
const T *load_row(const laq_step &step, int operand, int64_t at, int64_t n, T *scratch) {
    const void *data = step.data[operand];
    const int64_t stride = step.strides[operand][3];
    switch (step.types[operand]) {
        case LAQ_FLOAT32:
            if constexpr (sizeof(T) == 4) {
                if (stride == 1) return static_cast<const T *>(data) + at;
            }
            load_as<T, float>(data, at, stride, n, scratch);
            break;
        case LAQ_INT64: load_as<T, int64_t>(data, at, stride, n, scratch); break;
        case LAQ_BOOL: load_as<T, uint8_t>(data, at, stride, n, scratch); break;
        default: {
            const uint16_t *p = static_cast<const uint16_t *>(data) + at;
            const int32_t type = step.types[operand];
            for (int64_t i = 0; i < n; i++) scratch[i] = static_cast<T>(from_half(type, p[i * stride]));
        }
    }
    return scratch;
}

// What x86 makes of a float: the smallest integer where it does not fit.
inline int64_t whole(float value) {
    return value >= -0x1p63f && value < 0x1p63f ? static_cast<int64_t>(value) : INT64_MIN;
}
inline int64_t whole(int64_t value) { return value; }

template <class T>
void store_row(const laq_step &step, int64_t at, int64_t n, const T *values) {
    const int64_t stride = step.strides[0][3];
    switch (step.types[0]) {
        case LAQ_FLOAT32: {
            float *p = static_cast<float *>(step.data[0]) + at;
            for (int64_t i = 0; i < n; i++) p[i * stride] = static_cast<float>(values[i]);
            break;
        }
        case LAQ_INT64: {
            int64_t *p = static_cast<int64_t *>(step.data[0]) + at;
            for (int64_t i = 0; i < n; i++) p[i * stride] = whole(values[i]);
            break;
        }
        case LAQ_BOOL: {
            uint8_t *p = static_cast<uint8_t *>(step.data[0]) + at;
            for (int64_t i = 0; i < n; i++) p[i * stride] = values[i] != T(0) ? 1 : 0;
            break;
        }
        default: {
            uint16_t *p = static_cast<uint16_t *>(step.data[0]) + at;
            const int32_t type = step.types[0];
            for (int64_t i = 0; i < n; i++) p[i * stride] = to_half(type, static_cast<float>(values[i]));
        }
    }
}

// ------------------------------------------------------------------ functions of elements

// Integers wrap around, as in torch.
inline float plus(float a, float b) { return a + b; }
inline float minus(float a, float b) { return a - b; }
inline float times(float a, float b) { return a * b; }
inline int64_t plus(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }
inline int64_t minus(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b)); }
inline int64_t times(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b)); }
inline float negative(float a) { return -a; }
inline int64_t negative(int64_t a) { return minus(int64_t{0}, a); }
inline float magnitude(float a) { return fabsf(a); }
inline int64_t magnitude(int64_t a) { return a < 0 ? negative(a) : a; }

template <class T>
void arithmetic(int32_t kind, const T *a, const T *b, const T *c, int64_t n, T *out) {
    switch (kind) {
        case LAQ_COPY: for (int64_t i = 0; i < n; i++) out[i] = a[i]; break;
        case LAQ_NEGATE: for (int64_t i = 0; i < n; i++) out[i] = negative(a[i]); break;
        case LAQ_ABSOLUTE: for (int64_t i = 0; i < n; i++) out[i] = magnitude(a[i]); break;
        case LAQ_SQUARE: for (int64_t i = 0; i < n; i++) out[i] = times(a[i], a[i]); break;
        case LAQ_RELU: for (int64_t i = 0; i < n; i++) out[i] = a[i] < T(0) ? T(0) : a[i]; break;
        case LAQ_NOT: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] == T(0)); break;
        case LAQ_ADD: for (int64_t i = 0; i < n; i++) out[i] = plus(a[i], b[i]); break;
        case LAQ_SUBTRACT: for (int64_t i = 0; i < n; i++) out[i] = minus(a[i], b[i]); break;
        case LAQ_MULTIPLY: for (int64_t i = 0; i < n; i++) out[i] = times(a[i], b[i]); break;
        case LAQ_MINIMUM: for (int64_t i = 0; i < n; i++) out[i] = b[i] < a[i] || b[i] != b[i] ? b[i] : a[i]; break;
        case LAQ_MAXIMUM: for (int64_t i = 0; i < n; i++) out[i] = b[i] > a[i] || b[i] != b[i] ? b[i] : a[i]; break;
        case LAQ_LESS: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] < b[i]); break;
        case LAQ_LESS_EQUAL: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] <= b[i]); break;
        case LAQ_EQUAL: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] == b[i]); break;
        case LAQ_NOT_EQUAL: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] != b[i]); break;
        case LAQ_AND: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] != T(0) && b[i] != T(0)); break;
        case LAQ_OR: for (int64_t i = 0; i < n; i++) out[i] = T(a[i] != T(0) || b[i] != T(0)); break;
        default: for (int64_t i = 0; i < n; i++) out[i] = a[i] != T(0) ? b[i] : c[i]; break;  // LAQ_WHERE
    }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

void functions(int32_t kind, const float *a, const float *b, int64_t n, float *out) {
    constexpr float root_half = 0.70710678f, root_2_over_pi = 0.79788456f;
    switch (kind) {
        case LAQ_SQRT: for (int64_t i = 0; i < n; i++) out[i] = sqrtf(a[i]); break;
        case LAQ_RSQRT: for (int64_t i = 0; i < n; i++) out[i] = 1.0f / sqrtf(a[i]); break;
        case LAQ_RECIPROCAL: for (int64_t i = 0; i < n; i++) out[i] = 1.0f / a[i]; break;
        case LAQ_EXP: for (int64_t i = 0; i < n; i++) out[i] = exponential(a[i]); break;
        case LAQ_COS: for (int64_t i = 0; i < n; i++) out[i] = cosf(a[i]); break;
        case LAQ_SIN: for (int64_t i = 0; i < n; i++) out[i] = sinf(a[i]); break;
        case LAQ_TANH: for (int64_t i = 0; i < n; i++) out[i] = tanhf(a[i]); break;
        case LAQ_SIGMOID: for (int64_t i = 0; i < n; i++) out[i] = sigmoid(a[i]); break;
        case LAQ_SILU: for (int64_t i = 0; i < n; i++) out[i] = a[i] / (1.0f + exponential(-a[i])); break;
        case LAQ_GELU: for (int64_t i = 0; i < n; i++) out[i] = 0.5f * a[i] * (1.0f + erff(a[i] * root_half)); break;
        case LAQ_GELU_TANH:
            for (int64_t i = 0; i < n; i++) {
                const float inner = root_2_over_pi * (a[i] + 0.044715f * a[i] * a[i] * a[i]);
                out[i] = 0.5f * a[i] * (1.0f + tanhf(inner));
            }
            break;
        case LAQ_DIVIDE: for (int64_t i = 0; i < n; i++) out[i] = a[i] / b[i]; break;
        default: for (int64_t i = 0; i < n; i++) out[i] = powf(a[i], b[i]); break;  // LAQ_POWER
    }
}

bool is_function(int32_t kind) {
    return (kind >= LAQ_SQRT && kind <= LAQ_GELU_TANH) || kind == LAQ_DIVIDE || kind == LAQ_POWER;
}

int n_operands(int32_t kind) {
    if (kind == LAQ_WHERE) return 3;
    return kind >= LAQ_ADD && kind <= LAQ_OR ? 2 : 1;
}

bool reads_floats(const laq_step &step) {
    if (is_function(step.kind)) return true;
    if (step.types[0] != LAQ_BOOL && step.types[0] != LAQ_INT64) return true;
    for (int i = 1; i <= n_operands(step.kind); i++) {
        if (step.types[i] != LAQ_BOOL && step.types[i] != LAQ_INT64) return true;
    }
    return false;
}

// Calls body(start of each operand) for each row along the last axis.
template <class Body>
void for_rows(const laq_step &step, const Body &body) {
    for (int64_t i = 0; i < step.sizes[0]; i++) {
        for (int64_t j = 0; j < step.sizes[1]; j++) {
            for (int64_t k = 0; k < step.sizes[2]; k++) {
                int64_t starts[4];
                for (int operand = 0; operand < 4; operand++) {
                    const int64_t *s = step.strides[operand];
                    starts[operand] = i * s[0] + j * s[1] + k * s[2];
                }
                body(starts);
            }
        }
    }
}

template <class T>
void elementwise_as(const laq_step &step) {
    const int n_read = n_operands(step.kind);
    const bool in_place = sizeof(T) == 4 && step.types[0] == LAQ_FLOAT32 && step.strides[0][3] == 1;
    T scratch[4][kChunk];
    for_rows(step, [&](const int64_t *starts) {
        for (int64_t done = 0; done < step.sizes[3]; done += kChunk) {
            const int64_t n = std::min(kChunk, step.sizes[3] - done);
            const T *read[4] = {};
            for (int operand = 1; operand <= n_read; operand++) {
                const int64_t at = starts[operand] + done * step.strides[operand][3];
                read[operand] = load_row<T>(step, operand, at, n, scratch[operand]);
            }
            const int64_t at = starts[0] + done * step.strides[0][3];
            T *out = in_place ? static_cast<T *>(step.data[0]) + at : scratch[0];
            if constexpr (sizeof(T) == 4) {
                if (is_function(step.kind)) functions(step.kind, read[1], read[2], n, out);
                else arithmetic<T>(step.kind, read[1], read[2], read[3], n, out);
            } else {
                arithmetic<T>(step.kind, read[1], read[2], read[3], n, out);
            }
            if (!in_place) store_row<T>(step, at, n, out);
        }
    });
}

// ------------------------------------------------------------------ along the last axis

// In 16 sums that are put together in one order.
float sum_of(const float *values, int64_t n) {
    float sums[16] = {};
    for (int64_t i = 0; i + 16 <= n; i += 16) {
        for (int lane = 0; lane < 16; lane++) sums[lane] += values[i + lane];
    }
    for (int64_t i = n / 16 * 16; i < n; i++) sums[i % 16] += values[i];
    for (int half = 8; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    }
    return sums[0];
}

void softmax(const float *in, int64_t n, float *out) {
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = in[i] > top ? in[i] : top;
    for (int64_t i = 0; i < n; i++) out[i] = exponential(in[i] - top);
    const float total = sum_of(out, n);
    for (int64_t i = 0; i < n; i++) out[i] /= total;
}

void layer_norm(const laq_step &step, const float *in, float *out, std::vector<float> &scratch) {
    const int64_t n = step.sizes[3];
    scratch.resize(static_cast<size_t>(2 * n));
    const float mean = sum_of(in, n) / static_cast<float>(n);
    for (int64_t i = 0; i < n; i++) out[i] = (in[i] - mean) * (in[i] - mean);
    const float scale = 1.0f / sqrtf(sum_of(out, n) / static_cast<float>(n) + static_cast<float>(step.number));
    for (int64_t i = 0; i < n; i++) out[i] = (in[i] - mean) * scale;
    if (step.data[2] != nullptr) {
        const float *weight = load_row<float>(step, 2, 0, n, scratch.data());
        for (int64_t i = 0; i < n; i++) out[i] *= weight[i];
    }
    if (step.data[3] != nullptr) {
        const float *bias = load_row<float>(step, 3, 0, n, scratch.data() + n);
        for (int64_t i = 0; i < n; i++) out[i] += bias[i];
    }
}

}  // namespace

void elementwise(const laq_step &step) {
    if (reads_floats(step)) elementwise_as<float>(step);
    else elementwise_as<int64_t>(step);
}

void along_last_axis(const laq_step &step) {
    const int64_t n = step.sizes[3];
    std::vector<float> in(static_cast<size_t>(n)), out(static_cast<size_t>(n)), scratch;
    for_rows(step, [&](const int64_t *starts) {
        const float *values = load_row<float>(step, 1, starts[1], n, in.data());
        int64_t n_results = n;
        if (step.kind == LAQ_SOFTMAX) {
            softmax(values, n, out.data());
        } else if (step.kind == LAQ_LAYER_NORM) {
            layer_norm(step, values, out.data(), scratch);
        } else {
            n_results = 1;
            const float total = sum_of(values, n);
            out[0] = step.kind == LAQ_MEAN ? total / static_cast<float>(n) : total;
        }
        store_row<float>(step, starts[0], n_results, out.data());
    });
}

}  // namespace laq
