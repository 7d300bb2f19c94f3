// Products with packed matrices: inputs are gathered and rounded, work is shared.
#include <algorithm>
#include <atomic>
#include <vector>

#include "matrix.hpp"
#include "pool.hpp"
#include "scratch.hpp"

namespace laq {
namespace {

template <int32_t kType>
void gather_as(const laq_matrix &m, const uint8_t *x, float *out) {
    if (m.column_permutation == nullptr) {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = load_element(x, kType, i);
    } else if (m.column_index_bytes == 2) {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = load_element(x, kType, index_at(m.column_permutation, 2, i));
    } else {
        for (int64_t i = 0; i < m.n_columns; i++) out[i] = load_element(x, kType, index_at(m.column_permutation, 4, i));
    }
}

// One input in the stored order of columns, padded with zeros.
void gather(const laq_matrix &m, const uint8_t *x, int32_t type, float *out, int64_t padded) {
    if (type == LAQ_FLOAT32) gather_as<LAQ_FLOAT32>(m, x, out);
    else if (type == LAQ_BFLOAT16) gather_as<LAQ_BFLOAT16>(m, x, out);
    else gather_as<LAQ_FLOAT16>(m, x, out);
    std::fill(out + m.n_columns, out + padded, 0.0f);
}

// Kept from call to call by each thread; what long prompts need beyond it is given back.
constexpr size_t kKeptBytes = 64 << 20;

size_t rounded(int64_t n) { return (static_cast<size_t>(n) + 63) / 64 * 64; }

// Work is counted in bytes of payload times inputs. A call below kAlone is done by the thread that makes it, a part below
// kPart is not worth claiming: another thread that still waits is there in a microsecond. Chosen with bench/decode.py.
constexpr int64_t kAlone = 1 << 17, kPart = 1 << 16;

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
};

// Cut the row blocks of all matrices, `left` bytes in all, into parts. They grow smaller, so that threads end together.
void cut(Call &call, int32_t n_matrices, int64_t left, int n_threads) {
    const int64_t least = kPart / call.x.n_inputs;
    for (int32_t i = 0; i < n_matrices; i++) {
        const laq_matrix &m = call.matrices[i];
        int64_t first = 0;
        for (int64_t block = 1; block <= row_blocks(m); block++) {
            const int64_t end = block < row_blocks(m) ? m.row_offsets[block] : m.payload_bytes;
            const int64_t bytes = end - m.row_offsets[first];
            if (bytes >= std::max(least, left / (4 * n_threads)) || block == row_blocks(m)) {
                call.parts.push_back({i, first, block});
                first = block;
                left -= bytes;
            }
        }
    }
}

uint8_t *output(const Call &call, int32_t matrix, int64_t input) {
    return static_cast<uint8_t *>(call.y[matrix]) + input * call.matrices[matrix].n_rows * type_bytes(call.type);
}

void few_inputs(Call &call, const Part &part) {
    const laq_matrix &m = call.matrices[part.matrix];
    const float *bias = call.bias == nullptr ? nullptr : call.bias[part.matrix];
    float sums[kInputChunk * kTileRows];
    const int64_t n = call.x.n_inputs, at_once = kInputChunk / n;
    for (int64_t block = part.first; block < part.last; block += at_once) {
        const int64_t end = std::min(block + at_once, part.last);
        call.tier->vector(m, call.x, call.two_planes, block, end, m.payload + m.row_offsets[block], sums);
        for (int64_t i = block; i < end; i++) {
            scatter(m, i, n, sums + n * kTileRows * (i - block), bias, output(call, part.matrix, 0), call.type);
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
            scatter(m, block, n, sums, bias, output(call, part.matrix, input), call.type);
        }
    }
}

void work_on_part(void *context, int64_t index) {
    Call &call = *static_cast<Call *>(context);
    const Part &part = call.parts[static_cast<size_t>(index)];
    if (call.x.n_inputs == 1 || (call.two_planes && call.x.n_inputs <= call.tier->few)) few_inputs(call, part);
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

constexpr int64_t kInputsAtOnce = 2;

// Values that are not finite count as zero here; product_not_finite sees to them.
bool round_input(const Rounding &r, float *row, int64_t input) {
    const auto round = [&] {
        return r.tier->quantize(row, r.padded / r.matrix->group_size, r.matrix->group_size, r.bits, input, r.n_inputs,
                                r.high, r.low, r.scales, r.sums);
    };
    gather(*r.matrix, r.x + input * r.stride * type_bytes(r.type), r.type, row, r.padded);
    if (round()) return true;
    std::replace_if(row, row + r.padded, [](float value) { return !is_finite(value); }, 0.0f);
    round();
    return false;
}

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
        r.finite[input] = round_input(r, row, input) ? 1 : 0;
    }
}

// After a few inputs the next call follows soon, with little between that other threads would do; after a long prompt
// the framework's own threads have their turn. Chosen with bench/decode.py.
int spins_after(int64_t n_inputs) { return n_inputs <= 4 ? Pool::kSpins : Pool::kFewSpins; }

void share(int64_t n_parts, bool alone, int spins, Pool::Work work, void *context) {
    if (!alone) return Pool::get().run(n_parts, work, context, spins);
    for (int64_t part = 0; part < n_parts; part++) work(context, part);
}

}  // namespace

int32_t linear(const Tier &tier, const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type,
               int64_t n_inputs, int64_t stride, void *const *y, const float *const *bias, int32_t activation_bits) {
    static thread_local Scratch scratch;
    if (n_inputs == 0) return LAQ_OK;
    const laq_matrix &m = matrices[0];
    const int64_t n_groups = column_groups(m), padded = n_groups * m.group_size;
    const size_t plane = rounded(n_inputs * padded), per_group = rounded(4 * n_inputs * n_groups);
    const size_t planes = activation_bits == 16 ? 2 * plane : plane;
    uint8_t *memory = scratch.bytes(planes + 2 * per_group + rounded(n_inputs));
    Rounding rounding{&m,     &tier,  static_cast<const uint8_t *>(x),
                      type,   n_inputs, stride,
                      padded, activation_bits, reinterpret_cast<int8_t *>(memory),
                      reinterpret_cast<int8_t *>(memory + planes - plane), reinterpret_cast<float *>(memory + planes),
                      reinterpret_cast<int32_t *>(memory + planes + per_group), memory + planes + 2 * per_group};
    int64_t payload_bytes = 0;
    for (int32_t i = 0; i < n_matrices; i++) payload_bytes += matrices[i].payload_bytes;
    const bool alone = payload_bytes * n_inputs < kAlone;
    const int spins = spins_after(n_inputs);
    share((n_inputs + kInputsAtOnce - 1) / kInputsAtOnce, alone, spins, round_inputs, &rounding);
    if (rounding.failed) return LAQ_NO_MEMORY;
    Call call{matrices, &tier, {rounding.high, rounding.low, rounding.scales, rounding.sums, n_inputs},
              activation_bits == 16, type, y, bias, {}};
    cut(call, n_matrices, payload_bytes, Pool::get().threads());
    share(static_cast<int64_t>(call.parts.size()), alone, spins, work_on_part, &call);
    for (int64_t input = 0; input < n_inputs; input++) {
        if (rounding.finite[input] != 0) continue;
        const uint8_t *row = static_cast<const uint8_t *>(x) + input * stride * type_bytes(type);
        for (int32_t i = 0; i < n_matrices; i++) {
            product_not_finite(matrices[i], tier, row, type, bias == nullptr ? nullptr : bias[i], output(call, i, input));
        }
    }
    scratch.shrink(kKeptBytes);
    return LAQ_OK;
}

}  // namespace laq
