// Rows, and products with inputs that are not finite: a tile at a time, decoded to floats.
#include <algorithm>
#include <vector>

#include "matrix.hpp"

namespace laq {
namespace {

float stored_scale(const laq_matrix &m, int64_t block, int64_t tile, int row) {
    const uint8_t *scales = static_cast<const uint8_t *>(m.scales) + tile_scale_bytes(m.scale_format) * tile;
    if (m.scale_format == LAQ_SCALES_FLOAT16) {
        uint16_t half;
        memcpy(&half, scales + 2 * row, 2);
        return from_float16(half);
    }
    const bool log4 = m.scale_format == LAQ_SCALES_LOG4;
    const int step = log4 ? scales[0] + (scales[1 + row / 2] >> 4 * (row % 2) & 15) : scales[row];
    return log_scale(step, m.octaves[block]);
}

float stored_zero_point(const uint8_t *zero_points, int bits, int row) {
    int value = 0;
    for (int bit = 0; bit < bits; bit++) {
        const int at = row * bits + bit;
        value |= (zero_points[at >> 3] >> (at & 7) & 1) << bit;
    }
    return bits > 3 ? static_cast<float>(value) : static_cast<float>((1 << (bits - 1)) - 1 + value) / 2;
}

// Where a tile's bytes start.
struct Place {
    int64_t payload, zero_points;

    void pass(const laq_matrix &m, int64_t tile) {
        payload += tile_bytes(m.bits[tile], m.group_size);
        zero_points += 2 * zero_point_bits(m.bits[tile]);
    }
};

// Weights of one tile, [16, group_size], in float32 as FORMAT.md defines them.
void decode_tile(const laq_matrix &m, const Tier &tier, int64_t block, int64_t tile, const Place &at, float *out) {
    alignas(64) uint8_t levels[kTileRows * 128];
    const int tag = m.bits[tile];
    tier.levels(m.payload + at.payload, tag, m.group_size, m.palettes, levels);
    for (int row = 0; row < kTileRows; row++) {
        const float scale = stored_scale(m, block, tile, row);
        const float zero = is_integer(tag) ? stored_zero_point(m.zero_points + at.zero_points, tag, row) : kMiddle;
        for (int i = 0; i < m.group_size; i++) {
            out[row * m.group_size + i] = scale * (static_cast<float>(levels[row * m.group_size + i]) - zero);
        }
    }
}

}  // namespace

void rows(const laq_matrix &m, const Tier &tier, const int64_t *stored_rows, int64_t n, uint8_t *out, int32_t type) {
    std::vector<float> row(static_cast<size_t>(column_groups(m) * m.group_size));
    float weights[kTileRows * 128];
    for (int64_t i = 0; i < n; i++, out += m.n_columns * type_bytes(type)) {
        const int64_t block = stored_rows[i] / kTileRows, in_block = stored_rows[i] % kTileRows;
        std::fill(row.begin(), row.end(), 0.0f);
        Place at{m.row_offsets[block], m.zero_offsets[block]};
        for (int64_t tile = m.tile_starts[block]; tile < m.tile_starts[block + 1]; tile++) {
            decode_tile(m, tier, block, tile, at, weights);
            memcpy(row.data() + int64_t{m.groups[tile]} * m.group_size, weights + in_block * m.group_size,
                   sizeof(float) * static_cast<size_t>(m.group_size));
            at.pass(m, tile);
        }
        for (int64_t column = 0; column < m.n_columns; column++) {
            store_element(out, type, source_column(m, column), row[static_cast<size_t>(column)]);
        }
    }
}

// What a float product has where inputs are not finite: NaN for every NaN and for an infinity times zero, an
// infinity otherwise. Finite inputs cannot change that and are left out.
void product_not_finite(const laq_matrix &m, const Tier &tier, const uint8_t *x, int32_t type, const float *bias,
                        uint8_t *y) {
    const float nan = as_float(0x7fc00000u);
    std::vector<float> infinite(static_cast<size_t>(column_groups(m) * m.group_size), 0.0f);
    std::vector<uint8_t> group_has(static_cast<size_t>(column_groups(m)), 0);
    bool has_nan = false;
    for (int64_t i = 0; i < m.n_columns; i++) {
        const float value = load_element(x, type, source_column(m, i));
        if (is_finite(value)) continue;
        has_nan = has_nan || is_nan(value);
        infinite[static_cast<size_t>(i)] = value;
        group_has[static_cast<size_t>(i / m.group_size)] = 1;
    }
    if (has_nan) {
        for (int64_t row = 0; row < m.n_rows; row++) store_element(y, type, row, nan);
        return;
    }
    std::vector<uint8_t> missing(group_has.size());
    float weights[kTileRows * 128];
    for (int64_t block = 0; block < row_blocks(m); block++) {
        missing = group_has;  // absent tiles are zero: they give NaN
        float sums[kTileRows] = {};
        Place at{m.row_offsets[block], m.zero_offsets[block]};
        for (int64_t tile = m.tile_starts[block]; tile < m.tile_starts[block + 1]; tile++) {
            const size_t group = m.groups[tile];
            if (group_has[group] != 0) {
                missing[group] = 0;
                decode_tile(m, tier, block, tile, at, weights);
                for (int row = 0; row < kTileRows; row++) {
                    for (int i = 0; i < m.group_size; i++) {
                        const float value = infinite[group * static_cast<size_t>(m.group_size) + static_cast<size_t>(i)];
                        if (value != 0.0f) sums[row] += weights[row * m.group_size + i] * value;
                    }
                }
            }
            at.pass(m, tile);
        }
        const bool any = std::find(missing.begin(), missing.end(), 1) != missing.end();
        for (float &sum : sums) sum = any ? nan : sum;
        scatter(m, block, 1, sums, bias, y, type);
    }
}

}  // namespace laq
