// The functions of laq.h: checks, choice of a tier, gathering of inputs, sharing of work.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "convert.hpp"
#include "pool.hpp"
#include "tier.hpp"

namespace laq {
namespace {

// ------------------------------------------------------------------ tiers

const Tier *const kTiers[] = {
    &scalar_tier,
#if defined(LAQ_X86)
    &avx2_tier,
#if defined(LAQ_AVX_VNNI)
    &avx_vnni_tier,
#endif
    &avx512_tier, &avx512_gfni_tier,
#elif defined(LAQ_ARM)
    &neon_tier,
#endif
};

const Tier *find_tier(int32_t index) {
    for (const Tier *tier : kTiers) {
        if (tier->runs_here() && index-- == 0) return tier;
    }
    return nullptr;
}

std::atomic<const Tier *> chosen{nullptr};

const Tier &current() {
    const Tier *tier = chosen.load(std::memory_order_acquire);
    if (tier == nullptr) {
        for (int32_t i = 0; const Tier *next = find_tier(i); i++) tier = next;
        chosen.store(tier, std::memory_order_release);
    }
    return *tier;
}

// ------------------------------------------------------------------ checks

int64_t row_blocks(const laq_matrix &m) { return (m.n_rows + kTileRows - 1) / kTileRows; }
int64_t column_groups(const laq_matrix &m) { return (m.n_columns + m.group_size - 1) / m.group_size; }

bool has_shape(const laq_matrix &m) {
    const int64_t most = int64_t{1} << 31;
    return m.n_rows > 0 && m.n_columns > 0 && m.n_rows < most && m.n_columns < most &&
           (m.group_size == 32 || m.group_size == 64 || m.group_size == 128) && column_groups(m) <= 65536 &&
           m.n_tiles >= 0 && m.n_tiles < most && m.tile_starts != nullptr && m.row_offsets != nullptr &&
           (m.scale_format == LAQ_SCALES_FLOAT16 || m.scale_format == LAQ_SCALES_LOG8) &&
           (m.n_tiles == 0 || (m.payload != nullptr && m.bits != nullptr && m.groups != nullptr &&
                               m.scales != nullptr && m.zero_points != nullptr));
}

// Widths, groups and row blocks; adds up the widths of all tiles.
bool has_tiles(const laq_matrix &m, int64_t *total_bits) {
    const int64_t n_blocks = row_blocks(m), n_groups = column_groups(m);
    std::vector<int64_t> owner(static_cast<size_t>(n_groups), -1);  // the row block that last had a group
    if (m.tile_starts[0] != 0 || m.tile_starts[n_blocks] != m.n_tiles) return false;
    for (int64_t block = 0; block < n_blocks; block++) {
        const int64_t first = m.tile_starts[block], last = m.tile_starts[block + 1];
        if (first > last || first < 0 || last > m.n_tiles) return false;
        if (m.row_offsets[block] != 2 * m.group_size * *total_bits) return false;
        for (int64_t tile = first; tile < last; tile++) {
            const int bits = m.bits[tile];
            if (bits < 1 || bits > 8 || bits == 7) return false;
            if (m.groups[tile] >= n_groups || owner[m.groups[tile]] == block) return false;
            owner[m.groups[tile]] = block;
            *total_bits += bits;
        }
    }
    return true;
}

bool has_scales(const laq_matrix &m) {
    if (m.scale_format == LAQ_SCALES_LOG8) {
        if (m.octaves == nullptr) return false;
        for (int64_t block = 0; block < row_blocks(m); block++) {
            if (m.octaves[block] < -24 || m.octaves[block] > 15) return false;
        }
        return true;
    }
    const uint8_t *halves = static_cast<const uint8_t *>(m.scales);
    for (int64_t i = 0; i < kTileRows * m.n_tiles; i++) {
        if ((halves[2 * i + 1] & 0x7c) == 0x7c) return false;
    }
    return true;
}

int64_t index_at(const void *permutation, int32_t bytes, int64_t i) {
    if (bytes == 2) {
        uint16_t index;
        memcpy(&index, static_cast<const uint8_t *>(permutation) + 2 * i, 2);
        return index;
    }
    uint32_t index;
    memcpy(&index, static_cast<const uint8_t *>(permutation) + 4 * i, 4);
    return index;
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

// ------------------------------------------------------------------ inputs

int64_t type_bytes(int32_t type) { return type == LAQ_FLOAT32 ? 4 : 2; }

float element(const uint8_t *p, int32_t type, int64_t i) {
    if (type == LAQ_FLOAT32) {
        float value;
        memcpy(&value, p + 4 * i, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, p + 2 * i, 2);
    return type == LAQ_BFLOAT16 ? from_bfloat16(half) : from_float16(half);
}

template <int32_t kType>
void gather_as(const laq_matrix &m, const uint8_t *x, float *out) {
    if (m.column_permutation == nullptr) {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = element(x, kType, i);
    } else if (m.column_index_bytes == 2) {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = element(x, kType, index_at(m.column_permutation, 2, i));
    } else {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = element(x, kType, index_at(m.column_permutation, 4, i));
    }
}

// One input in the stored order of columns, padded with zeros. Values that are not finite become zero and are
// said to be there.
bool gather(const laq_matrix &m, const uint8_t *x, int32_t type, float *out, int64_t padded) {
    if (type == LAQ_FLOAT32) gather_as<LAQ_FLOAT32>(m, x, out);
    else if (type == LAQ_BFLOAT16) gather_as<LAQ_BFLOAT16>(m, x, out);
    else gather_as<LAQ_FLOAT16>(m, x, out);
    std::fill(out + m.n_columns, out + padded, 0.0f);
    uint32_t largest = 0;
    for (int64_t i = 0; i < m.n_columns; i++) largest = std::max(largest, as_bits(out[i]) & 0x7fffffffu);
    if (largest < 0x7f800000u) return true;
    for (int64_t i = 0; i < m.n_columns; i++) {
        if ((as_bits(out[i]) & 0x7fffffffu) >= 0x7f800000u) out[i] = 0.0f;
    }
    return false;
}

// Memory that a thread keeps from call to call.
class Scratch {
  public:
    ~Scratch() { free(memory_); }
    uint8_t *bytes(size_t n) {
        if (n > size_) {
            free(memory_);
            size_ = (n + n / 4 + 4095) / 4096 * 4096;
            memory_ = static_cast<uint8_t *>(aligned_alloc(4096, size_));
            if (memory_ == nullptr) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return memory_;
    }

  private:
    uint8_t *memory_ = nullptr;
    size_t size_ = 0;
};

size_t rounded(int64_t n) { return (static_cast<size_t>(n) + 63) / 64 * 64; }

// ------------------------------------------------------------------ outputs

void store(uint8_t *y, int32_t type, int64_t i, float value) {
    if (type == LAQ_FLOAT32) {
        memcpy(y + 4 * i, &value, 4);
        return;
    }
    const uint16_t half = type == LAQ_BFLOAT16 ? to_bfloat16(value) : to_float16(value);
    memcpy(y + 2 * i, &half, 2);
}

int64_t source_row(const laq_matrix &m, int64_t row) {
    return m.row_permutation == nullptr ? row : index_at(m.row_permutation, m.row_index_bytes, row);
}

// The 16 sums of a row block to their rows of one output.
void scatter(const laq_matrix &m, int64_t block, const float *sums, const float *bias, uint8_t *y, int32_t type) {
    const int64_t first = block * kTileRows, n = std::min<int64_t>(kTileRows, m.n_rows - first);
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = source_row(m, first + i);
        store(y, type, row, bias == nullptr ? sums[i] : sums[i] + bias[row]);
    }
}

// ------------------------------------------------------------------ single tiles

float stored_scale(const laq_matrix &m, int64_t block, int64_t tile, int row) {
    const int64_t i = kTileRows * tile + row;
    if (m.scale_format == LAQ_SCALES_FLOAT16) {
        uint16_t half;
        memcpy(&half, static_cast<const uint8_t *>(m.scales) + 2 * i, 2);
        return from_float16(half);
    }
    static const uint32_t eighths[8] = {0x3f800000, 0x3f8b95c2, 0x3f9837f0, 0x3fa5fed7,
                                        0x3fb504f3, 0x3fc5672a, 0x3fd744fd, 0x3feac0c7};
    const int step = static_cast<const uint8_t *>(m.scales)[i];
    const uint32_t exponent = static_cast<uint32_t>(m.octaves[block] - 16 + (step >> 3));
    return as_float(eighths[step & 7] + (exponent << 23));
}

float stored_zero_point(const uint8_t *zero_points, int bits, int row) {
    int value = 0;
    for (int bit = 0; bit < bits; bit++) {
        const int at = row * bits + bit;
        value |= (zero_points[at >> 3] >> (at & 7) & 1) << bit;
    }
    return bits > 3 ? static_cast<float>(value) : static_cast<float>((1 << (bits - 1)) - 1 + value) / 2;
}

// What a float product has where inputs are not finite: infinities and NaN, row by row.
void add_not_finite(const laq_matrix &m, const Tier &tier, const uint8_t *x, int32_t type, const float *bias,
                    uint8_t *y) {
    const float nan = as_float(0x7fc00000u);
    const int64_t n_groups = column_groups(m);
    std::vector<float> found(static_cast<size_t>(n_groups * m.group_size), 0.0f);
    std::vector<uint8_t> group_has(static_cast<size_t>(n_groups), 0), codes(static_cast<size_t>(16 * m.group_size));
    for (int64_t i = 0; i < m.n_columns; i++) {
        const int64_t column = m.column_permutation == nullptr ? i : index_at(m.column_permutation, m.column_index_bytes, i);
        const float value = element(x, type, column);
        if ((as_bits(value) & 0x7fffffffu) >= 0x7f800000u) {
            found[static_cast<size_t>(i)] = value;
            group_has[static_cast<size_t>(i / m.group_size)] = 1;
        }
    }
    for (int64_t block = 0; block < row_blocks(m); block++) {
        int64_t bits = m.row_offsets[block] / (2 * m.group_size);
        std::vector<uint8_t> missing = group_has;  // zero weights give NaN as well
        float sums[kTileRows] = {};
        for (int64_t tile = m.tile_starts[block]; tile < m.tile_starts[block + 1]; tile++) {
            const int width = m.bits[tile];
            const int64_t group = m.groups[tile];
            if (group_has[static_cast<size_t>(group)] != 0) {
                missing[static_cast<size_t>(group)] = 0;
                tier.codes(m.payload + 2 * m.group_size * bits, width, m.group_size, codes.data());
                for (int row = 0; row < kTileRows; row++) {
                    const float scale = stored_scale(m, block, tile, row);
                    const float zero = stored_zero_point(m.zero_points + 2 * bits, width, row);
                    for (int i = 0; i < m.group_size; i++) {
                        const float value = found[static_cast<size_t>(group * m.group_size + i)];
                        const float weight = scale * (static_cast<float>(codes[static_cast<size_t>(row * m.group_size + i)]) - zero);
                        if (value != 0.0f) sums[row] += weight * value;
                    }
                }
            }
            bits += width;
        }
        const bool any = std::find(missing.begin(), missing.end(), 1) != missing.end();
        for (float &sum : sums) sum = any ? nan : sum;
        scatter(m, block, sums, bias, y, type);
    }
}

// ------------------------------------------------------------------ one call

// Bytes of payload below which a part is not worth claiming.
constexpr int64_t kPartBytes = 128 << 10;

struct Part {
    int32_t matrix;
    int64_t first, last;  // row blocks
};

struct Call {
    const laq_matrix *matrices;
    const Tier *tier;
    Activations x;
    bool two_planes;
    int32_t type;
    void *const *y;
    const float *const *bias;
    std::vector<Part> parts;
    std::atomic<bool> failed{false};
};

// Cut the row blocks of all matrices into parts of about equal bytes.
void cut(Call &call, int32_t n_matrices, int n_threads) {
    int64_t total = 0;
    for (int32_t i = 0; i < n_matrices; i++) total += call.matrices[i].payload_bytes;
    const int64_t wanted = std::max(kPartBytes, total / (4 * n_threads));
    for (int32_t i = 0; i < n_matrices; i++) {
        const laq_matrix &m = call.matrices[i];
        int64_t first = 0;
        for (int64_t block = 1; block <= row_blocks(m); block++) {
            const int64_t end = block < row_blocks(m) ? m.row_offsets[block] : m.payload_bytes;
            if (end - m.row_offsets[first] >= wanted || block == row_blocks(m)) {
                call.parts.push_back({i, first, block});
                first = block;
            }
        }
    }
}

uint8_t *output(const Call &call, int32_t matrix, int64_t input) {
    return static_cast<uint8_t *>(call.y[matrix]) + input * call.matrices[matrix].n_rows * type_bytes(call.type);
}

void one_input(Call &call, const Part &part) {
    const laq_matrix &m = call.matrices[part.matrix];
    const float *bias = call.bias == nullptr ? nullptr : call.bias[part.matrix];
    constexpr int64_t at_once = 64;
    float sums[at_once * kTileRows];
    for (int64_t block = part.first; block < part.last; block += at_once) {
        const int64_t end = std::min(block + at_once, part.last);
        call.tier->vector(m, call.x, call.two_planes, block, end, m.payload + m.row_offsets[block], sums);
        for (int64_t i = block; i < end; i++) {
            scatter(m, i, sums + kTileRows * (i - block), bias, output(call, part.matrix, 0), call.type);
        }
    }
}

void many_inputs(Call &call, const Part &part) {
    const laq_matrix &m = call.matrices[part.matrix];
    const float *bias = call.bias == nullptr ? nullptr : call.bias[part.matrix];
    alignas(64) float sums[kInputChunk * kTileRows];
    for (int64_t input = 0; input < call.x.n_inputs; input += kInputChunk) {
        const int n = static_cast<int>(std::min<int64_t>(kInputChunk, call.x.n_inputs - input));
        for (int64_t block = part.first; block < part.last; block++) {
            call.tier->block(m, call.x, call.two_planes, block, m.payload + m.row_offsets[block], input, n, sums);
            for (int i = 0; i < n; i++) {
                scatter(m, block, sums + kTileRows * i, bias, output(call, part.matrix, input + i), call.type);
            }
        }
    }
}

void work_on_part(void *context, int64_t index) {
    Call &call = *static_cast<Call *>(context);
    const Part &part = call.parts[static_cast<size_t>(index)];
    if (call.x.n_inputs == 1) one_input(call, part);
    else many_inputs(call, part);
}

struct Rounding {
    const laq_matrix *matrix;
    const Tier *tier;
    const uint8_t *x;
    int32_t type;
    int64_t n_inputs, stride, padded;
    int bits;
    int8_t *high, *low;
    float *scales;
    int32_t *sums;
    uint8_t *finite;
    std::atomic<bool> failed{false};
};

constexpr int64_t kInputsAtOnce = 16;

void round_inputs(void *context, int64_t index) {
    static thread_local Scratch scratch;
    Rounding &r = *static_cast<Rounding *>(context);
    float *row;
    try {
        row = reinterpret_cast<float *>(scratch.bytes(static_cast<size_t>(4 * r.padded)));
    } catch (const std::bad_alloc &) {
        r.failed = true;
        return;
    }
    const int64_t last = std::min(r.n_inputs, (index + 1) * kInputsAtOnce);
    for (int64_t input = index * kInputsAtOnce; input < last; input++) {
        const uint8_t *x = r.x + input * r.stride * type_bytes(r.type);
        r.finite[input] = gather(*r.matrix, x, r.type, row, r.padded) ? 1 : 0;
        r.tier->quantize(row, r.padded / r.matrix->group_size, r.matrix->group_size, r.bits, input, r.n_inputs,
                         r.high, r.low, r.scales, r.sums);
    }
}

bool is_call(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type, int64_t n_inputs,
             void *const *y, int32_t activation_bits) {
    if (n_matrices < 1 || n_inputs < 0 || type < LAQ_FLOAT32 || type > LAQ_FLOAT16 || y == nullptr) return false;
    if (activation_bits != 8 && activation_bits != 16) return false;
    if (n_inputs > 0 && x == nullptr) return false;
    for (int32_t i = 1; i < n_matrices; i++) {
        if (matrices[i].n_columns != matrices[0].n_columns || matrices[i].group_size != matrices[0].group_size ||
            matrices[i].column_permutation != matrices[0].column_permutation) {
            return false;
        }
    }
    return true;
}

int32_t linear(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type, int64_t n_inputs,
               int64_t stride, void *const *y, const float *const *bias, int32_t activation_bits) {
    static thread_local Scratch scratch;
    const laq_matrix &m = matrices[0];
    const Tier &tier = current();
    const int64_t n_groups = column_groups(m), padded = n_groups * m.group_size;
    const size_t plane = rounded(n_inputs * padded), per_group = rounded(4 * n_inputs * n_groups);
    uint8_t *memory = scratch.bytes(2 * plane + 2 * per_group + rounded(n_inputs));
    Rounding rounding{&m,     &tier,  static_cast<const uint8_t *>(x),
                      type,   n_inputs, stride,
                      padded, activation_bits, reinterpret_cast<int8_t *>(memory),
                      reinterpret_cast<int8_t *>(memory + plane), reinterpret_cast<float *>(memory + 2 * plane),
                      reinterpret_cast<int32_t *>(memory + 2 * plane + per_group), memory + 2 * plane + 2 * per_group};
    Pool &pool = Pool::get();
    pool.run((n_inputs + kInputsAtOnce - 1) / kInputsAtOnce, round_inputs, &rounding);
    if (rounding.failed) return LAQ_NO_MEMORY;
    Call call{matrices, &tier, {rounding.high, rounding.low, rounding.scales, rounding.sums, n_inputs},
              activation_bits == 16, type, y, bias, {}};
    cut(call, n_matrices, pool.threads());
    pool.run(static_cast<int64_t>(call.parts.size()), work_on_part, &call);
    for (int64_t input = 0; input < n_inputs; input++) {
        if (rounding.finite[input] != 0) continue;
        const uint8_t *row = static_cast<const uint8_t *>(x) + input * stride * type_bytes(type);
        for (int32_t i = 0; i < n_matrices; i++) {
            add_not_finite(matrices[i], tier, row, type, bias == nullptr ? nullptr : bias[i], output(call, i, input));
        }
    }
    return LAQ_OK;
}

void rows(const laq_matrix &m, const int64_t *stored_rows, int64_t n, float factor, uint8_t *out, int32_t type) {
    const int64_t padded = column_groups(m) * m.group_size;
    std::vector<float> row(static_cast<size_t>(padded));
    std::vector<uint8_t> codes(static_cast<size_t>(kTileRows * m.group_size));
    for (int64_t i = 0; i < n; i++, out += m.n_columns * type_bytes(type)) {
        const int64_t block = stored_rows[i] / kTileRows;
        const int in_block = static_cast<int>(stored_rows[i] % kTileRows);
        std::fill(row.begin(), row.end(), 0.0f);
        int64_t bits = m.row_offsets[block] / (2 * m.group_size);
        for (int64_t tile = m.tile_starts[block]; tile < m.tile_starts[block + 1]; tile++) {
            const int width = m.bits[tile];
            current().codes(m.payload + 2 * m.group_size * bits, width, m.group_size, codes.data());
            const float scale = stored_scale(m, block, tile, in_block);
            const float zero = stored_zero_point(m.zero_points + 2 * bits, width, in_block);
            for (int column = 0; column < m.group_size; column++) {
                const float code = codes[static_cast<size_t>(in_block * m.group_size + column)];
                row[static_cast<size_t>(int64_t{m.groups[tile]} * m.group_size + column)] = scale * (code - zero);
            }
            bits += width;
        }
        for (int64_t column = 0; column < m.n_columns; column++) {
            const int64_t source = m.column_permutation == nullptr
                                       ? column
                                       : index_at(m.column_permutation, m.column_index_bytes, column);
            store(out, type, source, row[static_cast<size_t>(column)] * factor);
        }
    }
}

struct Reading {
    const uint8_t *bytes;
    int64_t n;
    std::atomic<uint64_t> sum{0};
};

constexpr int64_t kReadBytes = 1 << 20;

void read_part(void *context, int64_t index) {
    Reading &reading = *static_cast<Reading *>(context);
    const int64_t first = index * kReadBytes, last = std::min(reading.n, first + kReadBytes);
    uint64_t sums[32] = {};  // enough independent sums to be vectorized
    for (int64_t at = first; at + 256 <= last; at += 256) {
        __builtin_prefetch(reading.bytes + at + 6144);
        __builtin_prefetch(reading.bytes + at + 6144 + 64);
        __builtin_prefetch(reading.bytes + at + 6144 + 128);
        __builtin_prefetch(reading.bytes + at + 6144 + 192);
        uint64_t words[32];
        memcpy(words, reading.bytes + at, 256);
        for (int i = 0; i < 32; i++) sums[i] ^= words[i];
    }
    for (int i = 1; i < 32; i++) sums[0] ^= sums[i];
    reading.sum ^= sums[0];
}

}  // namespace
}  // namespace laq

extern "C" {

int32_t laq_abi_version(void) { return LAQ_ABI_VERSION; }

const char *laq_tier(int32_t index) {
    const laq::Tier *tier = laq::find_tier(index);
    return tier == nullptr ? nullptr : tier->name;
}

const char *laq_current_tier(void) { return laq::current().name; }

int32_t laq_use_tier(const char *name) {
    for (int32_t i = 0; const laq::Tier *tier = laq::find_tier(i); i++) {
        if (strcmp(tier->name, name) == 0) {
            laq::chosen.store(tier, std::memory_order_release);
            return LAQ_OK;
        }
    }
    return LAQ_BAD_ARGUMENT;
}

int32_t laq_set_threads(int32_t n_threads) {
    if (n_threads < 1 || n_threads > 1024) return LAQ_BAD_ARGUMENT;
    laq::Pool::get().set_threads(n_threads);
    return LAQ_OK;
}

int32_t laq_threads(void) { return laq::Pool::get().threads(); }

int32_t laq_check(const laq_matrix *matrix) {
    const laq_matrix &m = *matrix;
    try {
        int64_t bits = 0;
        if (!laq::has_shape(m)) return LAQ_BAD_SHAPE;
        if (!laq::has_tiles(m, &bits)) return LAQ_BAD_TILE;
        if (m.payload_bytes != 2 * m.group_size * bits || m.zero_point_bytes != 2 * bits) return LAQ_BAD_SIZE;
        if (!laq::has_scales(m)) return LAQ_BAD_SCALE;
        if (!laq::is_permutation(m.row_permutation, m.row_index_bytes, m.n_rows) ||
            !laq::is_permutation(m.column_permutation, m.column_index_bytes, m.n_columns)) {
            return LAQ_BAD_PERMUTATION;
        }
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
    return LAQ_OK;
}

int32_t laq_linear(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type, int64_t n_inputs,
                   int64_t stride, void *const *y, const float *const *bias, int32_t activation_bits) {
    if (!laq::is_call(matrices, n_matrices, x, type, n_inputs, y, activation_bits)) return LAQ_BAD_ARGUMENT;
    if (n_inputs == 0) return LAQ_OK;
    try {
        return laq::linear(matrices, n_matrices, x, type, n_inputs, stride, y, bias, activation_bits);
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
}

int32_t laq_rows(const laq_matrix *matrix, const int64_t *stored_rows, int64_t n, float factor, void *out,
                 int32_t type) {
    if (n < 0 || type < LAQ_FLOAT32 || type > LAQ_FLOAT16) return LAQ_BAD_ARGUMENT;
    for (int64_t i = 0; i < n; i++) {
        if (stored_rows[i] < 0 || stored_rows[i] >= matrix->n_rows) return LAQ_BAD_ARGUMENT;
    }
    try {
        laq::rows(*matrix, stored_rows, n, factor, static_cast<uint8_t *>(out), type);
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
    return LAQ_OK;
}

uint64_t laq_read(const uint8_t *bytes, int64_t n) {
    laq::Reading reading{bytes, n};
    laq::Pool::get().run((n + laq::kReadBytes - 1) / laq::kReadBytes, laq::read_part, &reading);
    return reading.sum;
}

}  // extern "C"
