// Entries that codes of a width stand for, each by itself; src/laq/core/formats/table.py has the same.
#pragma once

#include "tier.hpp"

namespace laq {
namespace {

// 128 stands for zero.
alignas(16) const uint8_t kNf4Table[16] = {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255};
alignas(16) const uint8_t kFp4Table[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};
alignas(16) const uint8_t kTritsTable[16] = {127, 128, 129, 130};
// Two signs, the first of most weight: 20 and, by row of this table, 9, 11, 13 or 15 steps.
alignas(16) const uint8_t kResidualTables[4][16] = {
    {99, 117, 139, 157}, {97, 119, 137, 159}, {95, 121, 135, 161}, {93, 123, 133, 163}};

// Sixteen bytes where the table of a tile starts; those that no code names are of no meaning.
inline const uint8_t *table_of(int tag, const uint8_t *palettes) {
    if (is_residual(tag)) return kResidualTables[(tag - kResidual) / 16];
    switch (tag) {
        case kNf4: return kNf4Table;
        case kFp4: return kFp4Table;
        case kTrits: return kTritsTable;
        default: return palettes + (1 << width_of(tag)) - 4;  // 4, 8 and 16 entries follow each other
    }
}

}  // namespace
}  // namespace laq
