// What a tier offers: one table of functions for each instruction set.
#pragma once

#include "laq.h"

#define LAQ_INLINE inline __attribute__((always_inline))

namespace laq {

constexpr int kTileRows = 16;
constexpr int kBrickColumns = 32;
constexpr int kLineBytes = 64;
// Bytes ahead of the one being read that are asked for: 6 KiB covers the latency of memory at its full rate.
constexpr int kPrefetch = 6144;
constexpr int kPrefetchFactors = 512;  // of scales and of zero points
// Inputs that share one unpacked tile; their float sums stay in the first-level cache.
constexpr int kInputChunk = 128;

// What the tile table says of a tile: the width of its codes, and a multiple of 16 for what they stand for.
namespace {
constexpr int kTrellisTag = 16, kPaletteTag = 32, kNf4 = 48 + 4, kFp4 = 64 + 4, kTrits = 80 + 2;
constexpr int kResidual = 96 + 2;   // of the first of four
constexpr int kMiddle = 128;        // the level that stands for zero, where levels are entries of a table
constexpr int kPaletteBytes = 28;   // of all palettes of a matrix: 4, 8 and 16 entries
constexpr int kTritsOfByte = 5;
constexpr bool is_integer(int tag) { return tag < kTrellisTag; }
constexpr bool is_trellis(int tag) { return tag >> 4 == kTrellisTag >> 4; }
constexpr bool is_palette(int tag) { return tag >> 4 == kPaletteTag >> 4; }
constexpr bool is_trits(int tag) { return tag == kTrits; }
constexpr bool is_residual(int tag) { return tag >= kResidual && tag <= kResidual + 48 && (tag & 15) == 2; }
// Codes that each stand for one of up to sixteen entries.
constexpr bool is_table(int tag) { return tag >= kPaletteTag; }
constexpr int width_of(int tag) { return tag & 15; }
constexpr int zero_point_bits(int tag) { return is_integer(tag) ? tag : 0; }
constexpr bool is_tag(int tag) {
    return is_integer(tag)   ? tag >= 1 && tag <= 8 && tag != 7
           : is_trellis(tag) ? tag > kTrellisTag && tag <= kTrellisTag + 6
           : is_palette(tag) ? tag >= kPaletteTag + 2 && tag <= kPaletteTag + 4
                             : tag == kNf4 || tag == kFp4 || tag == kTrits || is_residual(tag);
}
// Bytes of a tile's codes.
constexpr int tile_bytes(int tag, int group_size) {
    const int n_slots = group_size / 4;
    return is_trits(tag) ? kLineBytes * (n_slots / kTritsOfByte) + kLineBytes / 4 * (n_slots % kTritsOfByte)
                         : 2 * group_size * width_of(tag);
}

// How scales are stored: bytes of the 16 of a tile.
constexpr int kLog4Bytes = 1 + kTileRows / 2;
constexpr int kLog4Span = 15;
constexpr bool is_stored_format(int format) { return format >= LAQ_SCALES_FLOAT16 && format <= LAQ_SCALES_LOG4; }
constexpr bool is_searched_format(int format) { return is_stored_format(format) || format == LAQ_SCALES_E8M0; }
constexpr bool is_log(int scale_format) { return scale_format != LAQ_SCALES_FLOAT16; }
// Log steps from one scale that can be stored to the next.
constexpr int scale_pitch(int scale_format) { return scale_format == LAQ_SCALES_E8M0 ? 8 : 1; }
constexpr int tile_scale_bytes(int scale_format) {
    return scale_format == LAQ_SCALES_LOG4 ? kLog4Bytes : scale_format == LAQ_SCALES_LOG8 ? kTileRows : 2 * kTileRows;
}

// A tag as a type, for what is compiled once for each; tables of one width are alike.
template <int TAG>
struct Tag {
    static constexpr int value = TAG;
};

template <class Work>
LAQ_INLINE void by_tag(int tag, Work work) {
    switch (tag) {
        case 1: return work(Tag<1>{});
        case 2: return work(Tag<2>{});
        case 3: return work(Tag<3>{});
        case 4: return work(Tag<4>{});
        case 5: return work(Tag<5>{});
        case 6: return work(Tag<6>{});
        case 17: return work(Tag<17>{});
        case 18: return work(Tag<18>{});
        case 19: return work(Tag<19>{});
        case 20: return work(Tag<20>{});
        case 21: return work(Tag<21>{});
        case 22: return work(Tag<22>{});
        case kPaletteTag + 2:
        case kResidual:
        case kResidual + 16:
        case kResidual + 32:
        case kResidual + 48: return work(Tag<kPaletteTag + 2>{});
        case kPaletteTag + 3: return work(Tag<kPaletteTag + 3>{});
        case kPaletteTag + 4:
        case kNf4:
        case kFp4: return work(Tag<kPaletteTag + 4>{});
        case kTrits: return work(Tag<kTrits>{});
        default: return work(Tag<8>{});
    }
}
}  // namespace

// Inputs rounded to integers, a group at a time; group-major: all inputs of a group lie together.
struct Activations {
    const int8_t *high;   // [groups, inputs, group_size]; the only plane with 8 bits
    const int8_t *low;    // the same: value = 256 high + low, with 16 bits
    const float *scales;  // [groups, inputs]
    const int32_t *sums;  // [groups, inputs] sum of the rounded values
    int64_t n_inputs;
};

struct Tier {
    const char *name;
    bool (*runs_here)();
    int64_t few;  // inputs of two planes that `vector` takes
    // Round one input, float32 [padded columns], to integers of `bits` bits at position `input`. False, and an
    // unfinished result, if a value is not finite.
    bool (*quantize)(const float *x, int64_t n_groups, int group_size, int bits, int64_t input,
                     int64_t n_inputs, int8_t *high, int8_t *low, float *scales, int32_t *sums);
    // One input, or with two planes up to `few`: out[n_inputs][16] for each row block from `first` to `last`.
    void (*vector)(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t first, int64_t last,
                   const uint8_t *payload, float *out);
    // Up to kInputChunk inputs from `input`: out[n][16] of one row block.
    void (*block)(const laq_matrix &matrix, const Activations &x, bool two_planes, int64_t row_block,
                  const uint8_t *payload, int64_t input, int n, float *out);
    // One query of one head of a LAQ_ATTENTION step, with so many floats of scratch.
    void (*attend)(const laq_step &step, int64_t batch, int64_t head, int64_t query, float *scratch);
    int64_t (*attention_scratch)(const laq_step &step);
    // Columns `first` to `last` of one row of a LAQ_MATMUL step; scratch for two rows, in lanes of 16.
    void (*multiply)(const laq_step &step, int64_t batch, int64_t row, int64_t first, int64_t last, float *scratch);
    // What the codes of a tile stand for, bytes [16, group_size]: themselves, or entries of a table.
    void (*levels)(const uint8_t *tile, int tag, int group_size, const uint8_t *palettes, uint8_t *out);
    // Row blocks `first` to `last`; see laq_errors and laq_round.
    void (*errors)(const laq_source &source, int64_t first, int64_t last, float *errors);
    void (*round)(const laq_source &source, const laq_rounding &rounding, int64_t first, int64_t last);
};

// Those that were compiled; csrc/api.cpp lists them.
extern const Tier scalar_tier, avx2_tier, avx_vnni_tier, avx512_tier, avx512_vbmi_tier, neon_tier;

}  // namespace laq
