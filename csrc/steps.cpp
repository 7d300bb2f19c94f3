// Recorded operations, one after the other: what torch would do, without the way through it.
#include <algorithm>
#include <atomic>
#include <vector>

#include "matrix.hpp"
#include "pool.hpp"
#include "scratch.hpp"

// The layout that src/laq/kernels/steps.py repeats.
static_assert(sizeof(laq_step) == 232 && sizeof(laq_attention) == 72 && sizeof(laq_product) == 64 &&
              sizeof(laq_lookup) == 24 && sizeof(laq_outliers) == 56);

namespace laq {
namespace {

// False if the index is out of range.
bool copy_at(const laq_step &step) {
    const int axis = static_cast<int>(step.number);
    const int64_t index = *static_cast<const int64_t *>(step.data[2]);
    if (index < 0 || index > *static_cast<const int64_t *>(step.details) - step.sizes[axis]) return false;
    laq_step moved = step;
    moved.kind = LAQ_COPY;
    const int64_t element = step.types[0] == LAQ_INT64 ? 8 : step.types[0] == LAQ_BOOL ? 1 : type_bytes(step.types[0]);
    moved.data[0] = static_cast<uint8_t *>(step.data[0]) + index * step.strides[0][axis] * element;
    elementwise(moved);
    return true;
}

bool gather_rows(const laq_step &step) {
    const int64_t *ids = static_cast<const int64_t *>(step.data[1]), n_rows = *static_cast<const int64_t *>(step.details);
    laq_step row = step;
    row.kind = LAQ_COPY;
    row.sizes[2] = 1;
    row.data[1] = step.data[2];
    row.types[1] = step.types[2];
    row.strides[1][3] = step.strides[2][3];
    const int64_t from = type_bytes(step.types[2]), to = type_bytes(step.types[0]);
    for (int64_t i = 0; i < step.sizes[2]; i++) {
        const int64_t id = ids[i * step.strides[1][2]];
        if (id < 0 || id >= n_rows) return false;
        row.data[0] = static_cast<uint8_t *>(step.data[0]) + i * step.strides[0][2] * to;
        row.data[1] = static_cast<uint8_t *>(step.data[2]) + id * step.strides[2][2] * from;
        elementwise(row);
    }
    return true;
}

// Products that one part of a matrix product holds at least.
constexpr int64_t kPartProducts = 1 << 17;

// Floats that this thread works with, or NULL: a thread of the pool must not throw.
float *scratch_floats(int64_t n, std::atomic<bool> &failed) {
    static thread_local Scratch scratch;
    try {
        return reinterpret_cast<float *>(scratch.bytes(4 * static_cast<size_t>(n)));
    } catch (const std::bad_alloc &) {
        failed = true;
        return nullptr;
    }
}

struct Multiplying {
    const laq_step *step;
    const Tier *tier;
    int64_t columns, parts;  // of one row
    std::atomic<bool> failed{false};
};

void multiply_part(void *context, int64_t index) {
    auto &call = *static_cast<Multiplying *>(context);
    const laq_step &step = *call.step;
    float *scratch = scratch_floats(2 * (step.sizes[3] + 16), call.failed);
    if (scratch == nullptr) return;
    const int64_t row = index / call.parts, first = index % call.parts * call.columns;
    const int64_t last = std::min(first + call.columns, step.sizes[2]);
    call.tier->multiply(step, row / step.sizes[1], row % step.sizes[1], first, last, scratch);
}

int32_t multiply(const laq_step &step, const Tier &tier) {
    const int64_t width = std::max<int64_t>(step.sizes[3], 1);
    const int64_t columns = std::min(std::max<int64_t>(kPartProducts / width, 16), std::max<int64_t>(step.sizes[2], 1));
    Multiplying call{&step, &tier, columns, (step.sizes[2] + columns - 1) / columns};
    Pool::get().run(step.sizes[0] * step.sizes[1] * call.parts, multiply_part, &call);
    return call.failed ? LAQ_NO_MEMORY : LAQ_OK;
}

struct Attending {
    const laq_step *step;
    const Tier *tier;
    std::atomic<bool> failed{false};
};

// Products below which one thread is faster alone.
constexpr int64_t kAloneProducts = 1 << 17;

void attend_part(void *context, int64_t index) {
    auto &call = *static_cast<Attending *>(context);
    const laq_step &step = *call.step;
    const int64_t heads = step.sizes[1];
    float *scratch = scratch_floats(call.tier->attention_scratch(step), call.failed);
    if (scratch == nullptr) return;
    for (int64_t query = 0; query < step.sizes[2]; query++) {
        call.tier->attend(step, index / heads, index % heads, query, scratch);
    }
}

int32_t attention(const laq_step &step, const Tier &tier) {
    Attending call{&step, &tier};
    const auto &a = *static_cast<const laq_attention *>(step.details);
    const int64_t n = step.sizes[0] * step.sizes[1];
    if (n * step.sizes[2] * step.sizes[3] * (a.width + a.value_width) > kAloneProducts) {
        Pool::get().run(n, attend_part, &call);
    } else {
        for (int64_t i = 0; i < n; i++) attend_part(&call, i);
    }
    return call.failed ? LAQ_NO_MEMORY : LAQ_OK;
}

int32_t look_up(const laq_step &step, const Tier &tier) {
    const auto &lookup = *static_cast<const laq_lookup *>(step.details);
    const int64_t *ids = static_cast<const int64_t *>(step.data[1]);
    std::vector<int64_t> stored(ids, ids + lookup.n);
    for (int64_t &row : stored) {
        if (row < 0 || row >= lookup.matrix->n_rows) return LAQ_BAD_ARGUMENT;
        if (lookup.row_index != nullptr) row = lookup.row_index[row];
        if (row < 0 || row >= lookup.matrix->n_rows) return LAQ_BAD_ARGUMENT;
    }
    rows(*lookup.matrix, tier, stored.data(), lookup.n, static_cast<uint8_t *>(step.data[0]), step.types[0]);
    return LAQ_OK;
}

}  // namespace

int32_t run_step(const laq_step &step, const Tier &tier) {
    switch (step.kind) {
        case LAQ_SUM:
        case LAQ_MEAN:
        case LAQ_SOFTMAX:
        case LAQ_LAYER_NORM: along_last_axis(step); return LAQ_OK;
        case LAQ_COPY_AT: return copy_at(step) ? LAQ_OK : LAQ_BAD_ARGUMENT;
        case LAQ_GATHER: return gather_rows(step) ? LAQ_OK : LAQ_BAD_ARGUMENT;
        case LAQ_MATMUL: return multiply(step, tier);
        case LAQ_ATTENTION: return attention(step, tier);
        case LAQ_ROWS: return look_up(step, tier);
        case LAQ_OUTLIERS: {
            const auto &o = *static_cast<const laq_outliers *>(step.details);
            const int32_t problem = check(o);
            if (problem == LAQ_OK) {
                multiply_outliers(o, step.data[1], step.types[1], step.sizes[0], o.n_columns, step.data[0]);
            }
            return problem;
        }
        case LAQ_LINEAR: {
            const auto &p = *static_cast<const laq_product *>(step.details);
            return linear(tier, p.matrices, p.n_matrices, p.x, p.type, p.n_inputs, p.stride, p.y, p.bias,
                          p.activation_bits);
        }
        default: break;
    }
    if (step.kind < LAQ_COPY || step.kind > LAQ_WHERE) return LAQ_BAD_ARGUMENT;
    elementwise(step);
    return LAQ_OK;
}

}  // namespace laq
