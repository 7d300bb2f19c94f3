// Whether a matrix is what the kernels rely on: they look at nothing again.
#include <vector>

#include "matrix.hpp"

namespace laq {
namespace {

bool has_shape(const laq_matrix &m) {
    const int64_t most = int64_t{1} << 31;
    return m.n_rows > 0 && m.n_columns > 0 && m.n_rows < most && m.n_columns < most &&
           (m.group_size == 32 || m.group_size == 64 || m.group_size == 128) && column_groups(m) <= 65536 &&
           m.n_tiles >= 0 && m.n_tiles < most && m.tile_starts != nullptr && m.row_offsets != nullptr &&
           m.zero_offsets != nullptr &&
           is_stored_format(m.scale_format) &&
           (m.n_tiles == 0 || (m.payload != nullptr && m.bits != nullptr && m.groups != nullptr &&
                               m.scales != nullptr && (m.zero_point_bytes == 0 || m.zero_points != nullptr)));
}

// Bytes of all tiles.
struct Sizes {
    int64_t codes = 0, zero_points = 0;
};

// Tags, groups and row blocks; adds up the bytes of all tiles.
bool has_tiles(const laq_matrix &m, Sizes *total) {
    const int64_t n_blocks = row_blocks(m), n_groups = column_groups(m);
    std::vector<int64_t> owner(static_cast<size_t>(n_groups), -1);  // the row block that last had a group
    if (m.tile_starts[0] != 0 || m.tile_starts[n_blocks] != m.n_tiles) return false;
    for (int64_t block = 0; block < n_blocks; block++) {
        const int64_t first = m.tile_starts[block], last = m.tile_starts[block + 1];
        if (first > last || first < 0 || last > m.n_tiles) return false;
        if (m.row_offsets[block] != total->codes || m.zero_offsets[block] != total->zero_points) return false;
        for (int64_t tile = first; tile < last; tile++) {
            const int tag = m.bits[tile];
            if (!is_tag(tag) || (is_palette(tag) && m.palettes == nullptr)) return false;
            if (m.groups[tile] >= n_groups || owner[m.groups[tile]] == block) return false;
            owner[m.groups[tile]] = block;
            total->codes += tile_bytes(tag, m.group_size);
            total->zero_points += 2 * zero_point_bits(tag);
        }
    }
    return true;
}

bool has_scales(const laq_matrix &m) {
    const uint8_t *scales = static_cast<const uint8_t *>(m.scales);
    if (!is_log(m.scale_format)) {
        for (int64_t i = 0; i < kTileRows * m.n_tiles; i++) {
            if ((scales[2 * i + 1] & 0x7c) == 0x7c) return false;
        }
        return true;
    }
    if (m.octaves == nullptr) return false;
    for (int64_t block = 0; block < row_blocks(m); block++) {
        if (m.octaves[block] < -24 || m.octaves[block] > 15) return false;
    }
    for (int64_t tile = 0; m.scale_format == LAQ_SCALES_LOG4 && tile < m.n_tiles; tile++) {
        if (scales[kLog4Bytes * tile] > 255 - kLog4Span) return false;
    }
    return true;
}

bool is_permutation(const void *permutation, int32_t bytes, int64_t n) {
    if (permutation == nullptr) return true;
    if (bytes != 2 && bytes != 4) return false;
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        const int64_t index = index_at(permutation, bytes, i);
        if (index >= n || seen[static_cast<size_t>(index)]) return false;
        seen[static_cast<size_t>(index)] = true;
    }
    return true;
}

}  // namespace

int32_t check(const laq_matrix &m) {
    Sizes sizes;
    if (!has_shape(m)) return LAQ_BAD_SHAPE;
    if (!has_tiles(m, &sizes)) return LAQ_BAD_TILE;
    if (m.payload_bytes != sizes.codes || m.zero_point_bytes != sizes.zero_points) return LAQ_BAD_SIZE;
    if (!has_scales(m)) return LAQ_BAD_SCALE;
    if (!is_permutation(m.row_permutation, m.row_index_bytes, m.n_rows) ||
        !is_permutation(m.column_permutation, m.column_index_bytes, m.n_columns)) {
        return LAQ_BAD_PERMUTATION;
    }
    return LAQ_OK;
}

}  // namespace laq
