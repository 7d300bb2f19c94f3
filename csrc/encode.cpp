// Searching and rounding of float matrices: row blocks are shared among threads.
#include "encode.hpp"

#include <algorithm>

#include "pool.hpp"

namespace laq {
namespace {

// Row blocks a thread takes at a time: 256 neighbouring rows of a group lie in few pages, and fit the second-level
// cache. Rounding one group is less work, so that even few rows are shared.
constexpr int64_t kErrorBlocks = 16, kRoundingBlocks = 4;

bool is_format(const laq_format &format) {
    return (format.tag == 0 || is_tag(format.tag)) && format.n_levels >= 1 && format.n_levels <= 256 &&
           format.first_step >= (is_integer(format.tag) ? 0 : -64) && format.first_step < format.last_step &&
           format.last_step <= 64 && (!is_table(format.tag) || format.n_levels <= 1 << width_of(format.tag));
}

// Whether what a format looks up is there.
bool has_table(const laq_source &source, const laq_format &format) {
    return !is_palette(format.tag) || source.palettes != nullptr;
}

struct Errors {
    const Tier &tier;
    const laq_source &source;
    float *errors;
};

void some_errors(void *context, int64_t part) {
    const Errors &call = *static_cast<const Errors *>(context);
    const int64_t first = part * kErrorBlocks, n_blocks = call.source.n_rows / kTileRows;
    call.tier.errors(call.source, first, std::min(first + kErrorBlocks, n_blocks), call.errors);
}

struct Rounding {
    const Tier &tier;
    const laq_source &source;
    const laq_rounding &rounding;
};

void some_rounding(void *context, int64_t part) {
    const Rounding &call = *static_cast<const Rounding *>(context);
    const int64_t first = part * kRoundingBlocks, n_blocks = call.source.n_rows / kTileRows;
    call.tier.round(call.source, call.rounding, first, std::min(first + kRoundingBlocks, n_blocks));
}

int64_t parts_of(const laq_source &source, int64_t blocks_each) {
    return (source.n_rows / kTileRows + blocks_each - 1) / blocks_each;
}

}  // namespace

int32_t check(const laq_source &source) {
    if (source.group_size != 32 && source.group_size != 64 && source.group_size != 128) return LAQ_BAD_SHAPE;
    if (source.n_rows < 0 || source.n_rows % kTileRows != 0 || source.stride < source.n_rows) return LAQ_BAD_SHAPE;
    if (source.n_columns < 0 || source.n_columns % source.group_size != 0) return LAQ_BAD_SHAPE;
    if (!is_searched_format(source.scale_format)) return LAQ_BAD_ARGUMENT;
    return std::all_of(source.formats, source.formats + source.n_formats, is_format) ? LAQ_OK : LAQ_BAD_ARGUMENT;
}

int32_t errors(const Tier &tier, const laq_source &source, float *out) {
    const auto known = [&](const laq_format &format) { return has_table(source, format); };
    if (!std::all_of(source.formats, source.formats + source.n_formats, known)) return LAQ_BAD_ARGUMENT;
    Errors call{tier, source, out};
    Pool::get().run(parts_of(source, kErrorBlocks), some_errors, &call);
    return LAQ_OK;
}

int32_t round(const Tier &tier, const laq_source &source, const laq_rounding &rounding) {
    if (source.n_columns != source.group_size) return LAQ_BAD_SHAPE;
    for (int64_t i = 0; i < source.n_rows / kTileRows; i++) {
        if (rounding.choices[i] >= source.n_formats) return LAQ_BAD_ARGUMENT;
        if (!has_table(source, source.formats[rounding.choices[i]])) return LAQ_BAD_ARGUMENT;
    }
    Rounding call{tier, source, rounding};
    Pool::get().run(parts_of(source, kRoundingBlocks), some_rounding, &call);
    return LAQ_OK;
}

}  // namespace laq
