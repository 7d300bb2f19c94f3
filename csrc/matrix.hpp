// What all functions need to know of a packed matrix.
#pragma once

#include <string.h>

#include "convert.hpp"
#include "tier.hpp"

namespace laq {

inline int64_t row_blocks(const laq_matrix &m) { return (m.n_rows + kTileRows - 1) / kTileRows; }
inline int64_t column_groups(const laq_matrix &m) { return (m.n_columns + m.group_size - 1) / m.group_size; }

inline int64_t index_at(const void *permutation, int32_t bytes, int64_t i) {
    if (bytes == 2) {
        uint16_t index;
        memcpy(&index, static_cast<const uint8_t *>(permutation) + 2 * i, 2);
        return index;
    }
    uint32_t index;
    memcpy(&index, static_cast<const uint8_t *>(permutation) + 4 * i, 4);
    return index;
}

inline int64_t source_row(const laq_matrix &m, int64_t row) {
    return m.row_permutation == nullptr ? row : index_at(m.row_permutation, m.row_index_bytes, row);
}

inline int64_t source_column(const laq_matrix &m, int64_t column) {
    return m.column_permutation == nullptr ? column : index_at(m.column_permutation, m.column_index_bytes, column);
}

inline int64_t type_bytes(int32_t type) { return type == LAQ_FLOAT32 ? 4 : 2; }

inline float load_element(const uint8_t *p, int32_t type, int64_t i) {
    if (type == LAQ_FLOAT32) {
        float value;
        memcpy(&value, p + 4 * i, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, p + 2 * i, 2);
    return from_half(type, half);
}

inline void store_element(uint8_t *p, int32_t type, int64_t i, float value) {
    if (type == LAQ_FLOAT32) {
        memcpy(p + 4 * i, &value, 4);
        return;
    }
    const uint16_t half = to_half(type, value);
    memcpy(p + 2 * i, &half, 2);
}

inline bool is_finite(float value) { return (as_bits(value) & 0x7fffffffu) < 0x7f800000u; }
inline bool is_nan(float value) { return (as_bits(value) & 0x7fffffffu) > 0x7f800000u; }

template <int32_t kType>
void scatter_as(const int64_t *rows, int64_t n_rows, const float *sums, const float *bias, uint8_t *y) {
    for (int64_t i = 0; i < n_rows; i++) store_element(y, kType, rows[i], sums[i] + bias[i]);
}

// Sums [n_inputs, 16] of a row block to their rows of each output.
inline void scatter(const laq_matrix &m, int64_t block, int64_t n_inputs, const float *sums, const float *bias,
                    uint8_t *y, int32_t type) {
    const int64_t first = block * kTileRows, left = m.n_rows - first, n = left < kTileRows ? left : kTileRows;
    int64_t rows[kTileRows];
    float added[kTileRows];
    for (int64_t i = 0; i < n; i++) {
        rows[i] = source_row(m, first + i);
        added[i] = bias == nullptr ? -0.0f : bias[rows[i]];  // x + -0 is x, also for zeros
    }
    for (int64_t input = 0; input < n_inputs; input++, sums += kTileRows, y += m.n_rows * type_bytes(type)) {
        if (type == LAQ_FLOAT32) scatter_as<LAQ_FLOAT32>(rows, n, sums, added, y);
        else if (type == LAQ_BFLOAT16) scatter_as<LAQ_BFLOAT16>(rows, n, sums, added, y);
        else scatter_as<LAQ_FLOAT16>(rows, n, sums, added, y);
    }
}

// check.cpp
int32_t check(const laq_matrix &matrix);

// single.cpp
void rows(const laq_matrix &matrix, const Tier &tier, const int64_t *stored_rows, int64_t n, uint8_t *out,
          int32_t type);
void product_not_finite(const laq_matrix &matrix, const Tier &tier, const uint8_t *x, int32_t type,
                        const float *bias, uint8_t *y);

// linear.cpp
int32_t linear(const Tier &tier, const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type,
               int64_t n_inputs, int64_t stride, void *const *y, const float *const *bias, int32_t activation_bits);

// outliers.cpp
int32_t check(const laq_outliers &outliers);
void multiply_outliers(const laq_outliers &outliers, const void *x, int32_t type, int64_t n_inputs, int64_t stride,
                       void *y);

// elements.cpp
void elementwise(const laq_step &step);
void along_last_axis(const laq_step &step);

// steps.cpp
int32_t run_step(const laq_step &step, const Tier &tier);

}  // namespace laq
