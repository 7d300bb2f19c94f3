// Products with the few elements of a matrix that are stored by themselves.
#include <algorithm>

#include "matrix.hpp"
#include "pool.hpp"

namespace laq {
namespace {

// Products below which one thread is faster alone, and that one part holds at least.
constexpr int64_t kPartElements = 1 << 15;

struct Multiplying {
    const laq_outliers *outliers;
    const uint8_t *x;
    int64_t stride, row_parts, rows;  // elements from one input to the next; parts of an input, rows of a part
    int32_t type;
    uint8_t *y;
};

template <int32_t kType>
void multiply_rows(const Multiplying &call, int64_t input, int64_t first, int64_t last) {
    const laq_outliers &o = *call.outliers;
    const uint8_t *x = call.x + input * call.stride * type_bytes(kType);
    uint8_t *y = call.y + input * o.n_rows * type_bytes(kType);
    for (int64_t row = first; row < last; row++) {
        float sum = 0.0f;
        for (int64_t i = o.starts[row]; i < o.starts[row + 1]; i++) {
            sum += from_bfloat16(o.values[i]) * load_element(x, kType, index_at(o.columns, o.column_bytes, i));
        }
        store_element(y, kType, row, sum);
    }
}

void multiply_part(void *context, int64_t index) {
    const auto &call = *static_cast<const Multiplying *>(context);
    const int64_t input = index / call.row_parts, first = index % call.row_parts * call.rows;
    const int64_t last = std::min(first + call.rows, call.outliers->n_rows);
    if (call.type == LAQ_FLOAT32) multiply_rows<LAQ_FLOAT32>(call, input, first, last);
    else if (call.type == LAQ_BFLOAT16) multiply_rows<LAQ_BFLOAT16>(call, input, first, last);
    else multiply_rows<LAQ_FLOAT16>(call, input, first, last);
}

}  // namespace

int32_t check(const laq_outliers &o) {
    if (o.n_rows < 1 || o.n_columns < 1 || o.n < 0 || (o.column_bytes != 2 && o.column_bytes != 4)) return LAQ_BAD_SHAPE;
    if (o.starts[0] != 0 || o.starts[o.n_rows] != o.n) return LAQ_BAD_SIZE;
    bool rises = true, inside = true;
    for (int64_t row = 0; row < o.n_rows; row++) rises &= o.starts[row] <= o.starts[row + 1];
    for (int64_t i = 0; i < o.n; i++) inside &= index_at(o.columns, o.column_bytes, i) < o.n_columns;
    return rises && inside ? LAQ_OK : LAQ_BAD_OUTLIER;
}

void multiply_outliers(const laq_outliers &o, const void *x, int32_t type, int64_t n_inputs, int64_t stride, void *y) {
    Multiplying call{&o, static_cast<const uint8_t *>(x), stride, 1, o.n_rows, type, static_cast<uint8_t *>(y)};
    if (n_inputs * o.n <= kPartElements) {
        for (int64_t input = 0; input < n_inputs; input++) multiply_part(&call, input);
        return;
    }
    call.row_parts = std::min(o.n_rows, o.n / kPartElements + 1);
    call.rows = (o.n_rows + call.row_parts - 1) / call.row_parts;
    Pool::get().run(n_inputs * call.row_parts, multiply_part, &call);
}

}  // namespace laq
