// Every tier that this machine runs against the scalar one: the same bits. Needs no Python, so that it also runs
// under an emulator. Prints one line; exit code 1 if anything differs.
#include <stdio.h>
#include <string.h>

#include <random>
#include <vector>

#include "../../csrc/laq.h"

namespace {

struct Packed {
    laq_matrix matrix{};
    std::vector<uint8_t> payload, bits, scales, zero_points, palettes;
    std::vector<uint16_t> groups, half_scales, rows, columns;
    std::vector<int8_t> octaves;
    std::vector<int32_t> starts{0};
    std::vector<int64_t> offsets, zero_offsets;
};

constexpr int kPaletteBytes = 28;

// Bytes of a tile's codes: three values take five codes a byte, and slots of four columns that fill no line 16 bytes.
int tile_bytes(int tag, int group_size) {
    const int slots = group_size / 4;
    return tag == 82 ? 64 * (slots / 5) + 16 * (slots % 5) : 2 * group_size * (tag & 15);
}

std::vector<uint8_t> random_bytes(int n, std::mt19937 &random) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

std::vector<uint16_t> permutation(int n, std::mt19937 &random) {
    std::vector<uint16_t> order(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) order[static_cast<size_t>(i)] = static_cast<uint16_t>(i);
    for (int i = n - 1; i > 0; i--) {
        std::swap(order[static_cast<size_t>(i)], order[random() % static_cast<unsigned>(i + 1)]);
    }
    return order;
}

// A matrix of random bytes: any payload is a valid one. `tag` 0 mixes all, absent tiles among them.
void fill(Packed &p, int n_rows, int n_columns, int group_size, int tag, int scale_format, std::mt19937 &random) {
    const int tags[] = {146, 130, 114, 98, 82, 68, 52, 36, 35, 34, 22, 21, 20, 19, 18, 17, 8, 6, 5, 4, 3, 2, 1};
    constexpr int n_tags = sizeof tags / sizeof tags[0];
    const int n_blocks = (n_rows + 15) / 16, n_groups = (n_columns + group_size - 1) / group_size;
    for (int block = 0; block < n_blocks; block++) {
        p.offsets.push_back(static_cast<int64_t>(p.payload.size()));
        p.zero_offsets.push_back(static_cast<int64_t>(p.zero_points.size()));
        for (int each : tags) {
            for (int group = 0; group < n_groups; group++) {
                const int at = (block * 7 + group * 5) % (n_tags + 1);
                const int mine = tag != 0 ? tag : at < n_tags ? tags[at] : 0;
                if (mine != each) continue;
                p.bits.push_back(static_cast<uint8_t>(each));
                p.groups.push_back(static_cast<uint16_t>(group));
                for (int i = 0; i < tile_bytes(each, group_size); i++) p.payload.push_back(static_cast<uint8_t>(random()));
                for (int i = 0; i < (each < 16 ? 2 * each : 0); i++) p.zero_points.push_back(static_cast<uint8_t>(random()));
                for (int i = 0; i < (scale_format == LAQ_SCALES_LOG4 ? 9 : 16); i++) {
                    const unsigned most = scale_format == LAQ_SCALES_LOG4 && i == 0 ? 240 : 255;
                    p.scales.push_back(static_cast<uint8_t>(random() % (most + 1)));
                }
                for (int i = 0; i < 16; i++) {
                    p.half_scales.push_back(static_cast<uint16_t>(0x2000 + random() % 0x1000));
                }
            }
        }
        p.starts.push_back(static_cast<int32_t>(p.bits.size()));
        p.octaves.push_back(static_cast<int8_t>(static_cast<int>(random() % 20) - 15));
    }
    p.rows = permutation(n_rows, random);
    p.columns = permutation(n_columns, random);
    p.palettes = random_bytes(kPaletteBytes, random);
    laq_matrix &m = p.matrix;
    m.n_rows = n_rows;
    m.n_columns = n_columns;
    m.group_size = group_size;
    const bool log_scales = scale_format != LAQ_SCALES_FLOAT16;
    m.scale_format = scale_format;
    m.n_tiles = static_cast<int64_t>(p.bits.size());
    m.payload_bytes = static_cast<int64_t>(p.payload.size());
    m.zero_point_bytes = static_cast<int64_t>(p.zero_points.size());
    m.payload = p.payload.data();
    m.bits = p.bits.data();
    m.groups = p.groups.data();
    m.scales = log_scales ? static_cast<const void *>(p.scales.data()) : p.half_scales.data();
    m.octaves = log_scales ? p.octaves.data() : nullptr;
    m.zero_points = p.zero_points.data();
    m.tile_starts = p.starts.data();
    m.zero_offsets = p.zero_offsets.data();
    m.row_offsets = p.offsets.data();
    m.row_permutation = p.rows.data();
    m.column_permutation = p.columns.data();
    m.row_index_bytes = m.column_index_bytes = 2;
    m.palettes = p.palettes.data();
}

struct Count {
    int compared = 0, wrong = 0;
    void add(bool same) {
        compared++;
        wrong += same ? 0 : 1;
    }
};

// Calls `results` on every tier, which returns bytes, and compares them with the first tier's.
template <class Results>
void compare_tiers(Count &count, Results results) {
    std::vector<uint8_t> first;
    for (int tier = 0; laq_tier(tier) != nullptr; tier++) {
        if (laq_use_tier(laq_tier(tier)) != LAQ_OK) return count.add(false);
        const std::vector<uint8_t> found = results();
        if (tier == 0) first = found;
        count.add(!found.empty() && found == first);
    }
}

template <class T>
void append(std::vector<uint8_t> &bytes, const std::vector<T> &values) {
    const uint8_t *p = reinterpret_cast<const uint8_t *>(values.data());
    bytes.insert(bytes.end(), p, p + sizeof(T) * values.size());
}

std::vector<float> normal_values(size_t n, std::mt19937 &random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float &value : values) value = normal(random);
    return values;
}

void compare_products(Count &count, int group_size, int tag, int variant) {
    std::mt19937 random(static_cast<unsigned>(1000 * group_size + 10 * tag + variant));
    Packed p;
    fill(p, 70, 3 * group_size + 13, group_size, tag, variant, random);
    if (laq_check(&p.matrix) != LAQ_OK) return count.add(false);
    for (int n : {1, 2, 3, 4, 17}) {
        const std::vector<float> x = normal_values(static_cast<size_t>(n * p.matrix.n_columns), random);
        for (int activation_bits : {8, 16}) {
            compare_tiers(count, [&] {
                std::vector<float> y(static_cast<size_t>(n * p.matrix.n_rows));
                std::vector<uint8_t> bytes;
                void *outputs[] = {y.data()};
                if (laq_linear(&p.matrix, 1, x.data(), LAQ_FLOAT32, n, p.matrix.n_columns, outputs, nullptr,
                               activation_bits) == LAQ_OK) {
                    append(bytes, y);
                }
                return bytes;
            });
        }
    }
}

// Searching, rounding and packing of random columns, some of them zero.
void compare_rounding(Count &count, int group_size, int scale_format) {
    const laq_format formats[] = {
        {0, 1, 0, 1, {}},  {1, 2, 0, 9, {}},  {2, 3, 1, 9, {}},  {2, 4, 0, 9, {}},   {3, 8, 0, 6, {}},
        {4, 16, 0, 5, {}}, {5, 32, 0, 4, {}}, {6, 64, 0, 3, {}}, {8, 256, 0, 2, {}}, {17, 2, -8, 16, {550, 1e-5f, 0}},
        {18, 4, -8, 16, {76, 7e-6f, 0}},      {19, 8, -8, 16, {15, 2e-6f, 2e-11f}},  {20, 16, -8, 16, {4, 5e-7f, 5e-11f}},
        {21, 32, -8, 16, {1, 0, 4e-11f}},     {22, 64, -8, 16, {0.1f, 0, 3e-11f}},  {34, 4, 0, 11, {}}, {35, 8, -2, 8, {}},
        {36, 16, -3, 6, {}}, {52, 16, -1, 6, {}}, {68, 16, -1, 6, {}}, {82, 3, 2, 13, {}}};
    constexpr int n_formats = 21, n_rows = 16 * n_formats;
    std::mt19937 random(static_cast<unsigned>(group_size));
    const size_t n = static_cast<size_t>(group_size * n_rows);
    std::vector<float> values = normal_values(n, random);
    const std::vector<float> factor = normal_values(static_cast<size_t>(group_size * group_size), random);
    std::vector<float> weights = normal_values(static_cast<size_t>(group_size), random);
    for (float &weight : weights) weight *= weight;
    for (size_t i = 3; i < n; i += 40) values[i] = 0;
    const std::vector<float> floors(n_rows, -160.0f);
    const std::vector<uint8_t> palettes = random_bytes(n_formats * kPaletteBytes, random);
    const laq_source source{n_rows, group_size, n_rows, group_size, scale_format, values.data(), weights.data(),
                            floors.data(), formats, n_formats, palettes.data(), kPaletteBytes};
    std::vector<uint8_t> choices;
    for (int i = 0; i < n_formats; i++) choices.push_back(static_cast<uint8_t>(i));
    compare_tiers(count, [&] {
        std::vector<float> errors(n_formats * n_rows), zero_points(n_rows), left(n);
        std::vector<uint8_t> codes(n), bytes;
        std::vector<int16_t> scales(n_rows);
        const laq_rounding rounding{choices.data(), factor.data(),      codes.data(),
                                    scales.data(),  zero_points.data(), left.data()};
        if (laq_errors(&source, errors.data()) != LAQ_OK || laq_round(&source, &rounding) != LAQ_OK) return bytes;
        append(bytes, errors);
        append(bytes, codes);
        append(bytes, scales);
        append(bytes, zero_points);
        append(bytes, left);
        return bytes;
    });
}

// Codes that were packed come back.
void compare_packing(Count &count, int group_size, int tag) {
    std::mt19937 random(static_cast<unsigned>(group_size + tag));
    const unsigned n_levels = tag == 82 ? 3 : 1u << (tag & 15);
    const int first = tag == 82 ? 127 : 0;  // levels of three values
    std::vector<uint8_t> codes(static_cast<size_t>(16 * group_size)), tags{static_cast<uint8_t>(tag)};
    for (uint8_t &code : codes) code = static_cast<uint8_t>(random() % n_levels);
    const int64_t start = 0;
    const laq_tiles tiles{1, group_size, tags.data(), &start, group_size, &start, nullptr};
    compare_tiers(count, [&] {
        std::vector<uint8_t> lines(static_cast<size_t>(tile_bytes(tag, group_size))), back(codes.size()), bytes;
        if (laq_pack(&tiles, codes.data(), lines.data()) != LAQ_OK) return bytes;
        if (laq_unpack(&tiles, lines.data(), back.data()) != LAQ_OK) return bytes;
        for (uint8_t &level : back) level = static_cast<uint8_t>(level - first);
        if (back != codes) return bytes;
        append(bytes, lines);
        return bytes;
    });
}

// What random lines stand for, where codes are looked up.
void compare_levels(Count &count, int group_size, int tag) {
    std::mt19937 random(static_cast<unsigned>(group_size + tag));
    const std::vector<uint8_t> lines = random_bytes(tile_bytes(tag, group_size), random), tags{static_cast<uint8_t>(tag)};
    const std::vector<uint8_t> palettes = random_bytes(kPaletteBytes, random);
    const int64_t start = 0;
    const laq_tiles tiles{1, group_size, tags.data(), &start, group_size, &start, palettes.data()};
    compare_tiers(count, [&] {
        std::vector<uint8_t> levels(static_cast<size_t>(16 * group_size)), bytes;
        if (laq_unpack(&tiles, lines.data(), levels.data()) != LAQ_OK) return bytes;
        append(bytes, levels);
        return bytes;
    });
}

// A step over 4 axes of `sizes` with contiguous operands of the given strides.
laq_step step_of(int kind, std::vector<int64_t> sizes) {
    laq_step step{};
    step.kind = kind;
    for (int i = 0; i < 4; i++) step.sizes[i] = sizes[static_cast<size_t>(i)];
    return step;
}

void set_operand(laq_step &step, int index, float *data, std::vector<int64_t> strides) {
    step.data[index] = data;
    for (int i = 0; i < 4; i++) step.strides[index][i] = strides[static_cast<size_t>(i)];
}

// Attention and a dense product of odd sizes.
void compare_steps(Count &count) {
    constexpr int64_t heads = 3, queries = 2, keys = 77, width = 40, value_width = 24, rows = 50;
    std::mt19937 random(1);
    const auto values = [&](int64_t n) { return normal_values(static_cast<size_t>(n), random); };
    std::vector<float> q = values(heads * queries * width), k = values(heads * keys * width);
    std::vector<float> v = values(heads * keys * value_width), w = values(rows * width);
    std::vector<float> attended(heads * queries * value_width), product(heads * queries * rows);
    laq_attention details{width, value_width, nullptr, 0, {}, 0.2f};
    laq_step steps[] = {step_of(LAQ_ATTENTION, {1, heads, queries, keys}),
                        step_of(LAQ_MATMUL, {1, heads * queries, rows, width})};
    steps[0].details = &details;
    set_operand(steps[0], 0, attended.data(), {0, queries * value_width, value_width, 1});
    set_operand(steps[0], 1, q.data(), {0, queries * width, width, 1});
    set_operand(steps[0], 2, k.data(), {0, keys * width, width, 1});
    set_operand(steps[0], 3, v.data(), {0, keys * value_width, value_width, 1});
    set_operand(steps[1], 0, product.data(), {0, rows, 1, 0});
    set_operand(steps[1], 1, q.data(), {0, width, 0, 1});
    set_operand(steps[1], 2, w.data(), {0, 0, width, 1});
    compare_tiers(count, [&] {
        std::vector<uint8_t> bytes;
        if (laq_run(steps, 2) != LAQ_OK) return bytes;
        append(bytes, attended);
        append(bytes, product);
        return bytes;
    });
}

}  // namespace

int main() {
    if (laq_tier(1) == nullptr) return printf("only the scalar tier runs here: nothing to compare\n"), 1;
    Count count;
    compare_steps(count);
    for (int group_size : {32, 64, 128}) {
        for (int tag : {0, 1, 2, 3, 4, 5, 6, 8, 17, 18, 19, 20, 21, 22, 34, 35, 36, 52, 68, 82}) {
            for (int variant = 0; variant < 3; variant++) compare_products(count, group_size, tag, variant);
            if ((tag >= 1 && tag <= 8) || tag == 82) compare_packing(count, group_size, tag);
            if (tag > 16) compare_levels(count, group_size, tag);
        }
        for (int scale_format = 0; scale_format <= LAQ_SCALES_E8M0; scale_format++) compare_rounding(count, group_size, scale_format);
    }
    printf("%d results of %s and the tiers before it, %d differ from the scalar ones\n", count.compared,
           laq_current_tier(), count.wrong);
    return count.wrong != 0;
}
