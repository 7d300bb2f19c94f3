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
    std::vector<uint8_t> payload, bits, scales, zero_points;
    std::vector<uint16_t> groups, half_scales, rows, columns;
    std::vector<int8_t> octaves;
    std::vector<int32_t> starts{0};
    std::vector<int64_t> offsets;
};

std::vector<uint16_t> permutation(int n, std::mt19937 &random) {
    std::vector<uint16_t> order(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) order[static_cast<size_t>(i)] = static_cast<uint16_t>(i);
    for (int i = n - 1; i > 0; i--) {
        std::swap(order[static_cast<size_t>(i)], order[random() % static_cast<unsigned>(i + 1)]);
    }
    return order;
}

// A matrix of random bytes: any payload is a valid one. `width` 0 mixes all, absent tiles among them.
void fill(Packed &p, int n_rows, int n_columns, int group_size, int width, bool log_scales, std::mt19937 &random) {
    const int widths[] = {8, 6, 5, 4, 3, 2, 1};
    const int n_blocks = (n_rows + 15) / 16, n_groups = (n_columns + group_size - 1) / group_size;
    for (int block = 0; block < n_blocks; block++) {
        p.offsets.push_back(static_cast<int64_t>(p.payload.size()));
        for (int b : widths) {
            for (int group = 0; group < n_groups; group++) {
                const int mine = width != 0 ? width : (block * 7 + group * 5) % 9;
                if (mine != b) continue;
                p.bits.push_back(static_cast<uint8_t>(b));
                p.groups.push_back(static_cast<uint16_t>(group));
                for (int i = 0; i < 2 * group_size * b; i++) p.payload.push_back(static_cast<uint8_t>(random()));
                for (int i = 0; i < 2 * b; i++) p.zero_points.push_back(static_cast<uint8_t>(random()));
                for (int i = 0; i < 16; i++) {
                    p.scales.push_back(static_cast<uint8_t>(random()));
                    p.half_scales.push_back(static_cast<uint16_t>(0x2000 + random() % 0x1000));
                }
            }
        }
        p.starts.push_back(static_cast<int32_t>(p.bits.size()));
        p.octaves.push_back(static_cast<int8_t>(static_cast<int>(random() % 20) - 15));
    }
    p.rows = permutation(n_rows, random);
    p.columns = permutation(n_columns, random);
    laq_matrix &m = p.matrix;
    m.n_rows = n_rows;
    m.n_columns = n_columns;
    m.group_size = group_size;
    m.scale_format = log_scales ? LAQ_SCALES_LOG8 : LAQ_SCALES_FLOAT16;
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
    m.row_offsets = p.offsets.data();
    m.row_permutation = p.rows.data();
    m.column_permutation = p.columns.data();
    m.row_index_bytes = m.column_index_bytes = 2;
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

// Attention and a dense product of odd sizes on every tier; returns how many differ from the scalar one.
int compare_steps(int &n_compared) {
    constexpr int64_t heads = 3, queries = 2, keys = 77, width = 40, value_width = 24, rows = 50;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> q(heads * queries * width), k(heads * keys * width), v(heads * keys * value_width), w(rows * width);
    for (auto *values : {&q, &k, &v, &w}) {
        for (float &value : *values) value = normal(random);
    }
    std::vector<float> first, attended(heads * queries * value_width), product(heads * queries * rows);
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
    int n_wrong = 0;
    for (int tier = 0; laq_tier(tier) != nullptr; tier++) {
        if (laq_use_tier(laq_tier(tier)) != LAQ_OK || laq_run(steps, 2) != LAQ_OK) return 1;
        std::vector<float> all = attended;
        all.insert(all.end(), product.begin(), product.end());
        if (tier == 0) first = all;
        n_compared++;
        n_wrong += memcmp(first.data(), all.data(), 4 * all.size()) != 0;
    }
    return n_wrong;
}

}  // namespace

int main() {
    if (laq_tier(1) == nullptr) return printf("only the scalar tier runs here: nothing to compare\n"), 1;
    int n_compared = 0, n_wrong = compare_steps(n_compared);
    for (int group_size : {32, 64, 128}) {
        for (int width : {0, 1, 2, 3, 4, 5, 6, 8}) {
            for (int variant = 0; variant < 2; variant++) {
                std::mt19937 random(static_cast<unsigned>(1000 * group_size + 10 * width + variant));
                Packed p;
                fill(p, 70, 3 * group_size + 13, group_size, width, variant == 0, random);
                if (laq_check(&p.matrix) != LAQ_OK) return printf("a matrix was refused\n"), 1;
                for (int n : {1, 3, 17}) {
                    std::normal_distribution<float> normal;
                    std::vector<float> x(static_cast<size_t>(n * p.matrix.n_columns));
                    for (float &value : x) value = normal(random);
                    for (int activation_bits : {8, 16}) {
                        std::vector<float> first;
                        for (int tier = 0; laq_tier(tier) != nullptr; tier++) {
                            if (laq_use_tier(laq_tier(tier)) != LAQ_OK) return printf("a tier was refused\n"), 1;
                            std::vector<float> y(static_cast<size_t>(n * p.matrix.n_rows));
                            void *outputs[] = {y.data()};
                            if (laq_linear(&p.matrix, 1, x.data(), LAQ_FLOAT32, n, p.matrix.n_columns, outputs,
                                           nullptr, activation_bits) != LAQ_OK) {
                                return printf("a product was refused\n"), 1;
                            }
                            if (tier == 0) first = y;
                            n_compared++;
                            n_wrong += memcmp(first.data(), y.data(), 4 * y.size()) != 0;
                        }
                    }
                }
            }
        }
    }
    printf("%d products on %s and those before it, %d differ from the scalar ones\n", n_compared, laq_current_tier(),
           n_wrong);
    return n_wrong != 0;
}
