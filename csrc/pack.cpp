// Codes to bricks and back: tiles are shared among threads.
#include <string.h>

#include <algorithm>

#include "encode.hpp"
#include "pool.hpp"

namespace laq {
namespace {

constexpr int64_t kTilesAtOnce = 256;

struct Packing {
    const Tier &tier;
    const laq_tiles &tiles;
    const uint8_t *from;
    uint8_t *to;
};

// The codes of a brick by slot: four neighbouring columns of each row, see docs/FORMAT.md.
using Lanes = uint64_t[8][8];

// One field of every code, `kField` bits from bit `shift`. Words hold eight codes: what crosses a byte is masked away.
template <int kField>
uint8_t *pack_field(const Lanes &lanes, int shift, uint8_t *line) {
    constexpr uint64_t mask = 0x0101010101010101ull * ((1u << kField) - 1);
    constexpr int per_line = 8 / kField;
    for (int slot = 0; slot < 8; slot += per_line, line += kLineBytes) {
        uint64_t words[8] = {};
        for (int i = 0; i < per_line; i++) {
            for (int word = 0; word < 8; word++) words[word] |= (lanes[slot + i][word] >> shift & mask) << (kField * i);
        }
        memcpy(line, words, kLineBytes);
    }
    return line;
}

void pack_brick(const Lanes &lanes, int bits, uint8_t *line) {
    int shift = bits;
    if (bits == 8) line = pack_field<8>(lanes, 0, line);
    if (bits < 8 && (bits & 4) != 0) line = pack_field<4>(lanes, shift -= 4, line);
    if ((bits & 2) != 0) line = pack_field<2>(lanes, shift -= 2, line);
    if ((bits & 1) != 0) pack_field<1>(lanes, shift - 1, line);
}

void pack_tile(const uint8_t *codes, int64_t stride, int bits, int group_size, uint8_t *lines) {
    for (int column = 0; column < group_size; column += kBrickColumns, lines += kLineBytes * bits) {
        Lanes lanes;
        uint8_t *bytes = reinterpret_cast<uint8_t *>(lanes);
        for (int slot = 0; slot < 8; slot++) {
            for (int row = 0; row < kTileRows; row++, bytes += 4) {
                memcpy(bytes, codes + row * stride + column + 4 * slot, 4);
            }
        }
        pack_brick(lanes, bits, lines);
    }
}

// Five trits a byte, the first of most weight, as a fraction of 256 that is rounded up; what fills no line has two bits a
// code.
void pack_trits(const uint8_t *codes, int64_t stride, int group_size, uint8_t *to) {
    const auto code = [&](int slot, int lane) { return int{codes[lane / 4 * stride + 4 * slot + lane % 4]}; };
    const int n_slots = group_size / 4, in_lines = n_slots - n_slots % kTritsOfByte;
    for (int slot = 0; slot < in_lines; slot += kTritsOfByte) {
        for (int lane = 0; lane < kLineBytes; lane++) {
            int value = 0;
            for (int i = 0; i < kTritsOfByte; i++) value = 3 * value + code(slot + i, lane);
            *to++ = static_cast<uint8_t>((256 * value + 242) / 243);
        }
    }
    for (int slot = in_lines; slot < n_slots; slot++) {
        for (int lane = 0; lane < kLineBytes; lane += 4) {
            int byte = 0;
            for (int i = 0; i < 4; i++) byte |= code(slot, lane + i) << (2 * i);
            *to++ = static_cast<uint8_t>(byte);
        }
    }
}

void unpack_tile(const Packing &call, const uint8_t *lines, int tag, uint8_t *codes) {
    alignas(64) uint8_t rows[kTileRows * 128];
    const int64_t stride = call.tiles.stride;
    const int group_size = call.tiles.group_size;
    call.tier.levels(lines, tag, group_size, call.tiles.palettes, rows);
    for (int row = 0; row < kTileRows; row++) {
        memcpy(codes + row * stride, rows + row * group_size, static_cast<size_t>(group_size));
    }
}

template <class Work>
void each_tile(const laq_tiles &tiles, int64_t part, Work work) {
    const int64_t last = std::min((part + 1) * kTilesAtOnce, tiles.n_tiles);
    for (int64_t i = part * kTilesAtOnce; i < last; i++) {
        work(tiles.bits[i], tiles.code_starts[i], tiles.payload_starts[i]);
    }
}

void pack_some(void *context, int64_t part) {
    const Packing &call = *static_cast<const Packing *>(context);
    each_tile(call.tiles, part, [&](int tag, int64_t codes, int64_t payload) {
        const laq_tiles &tiles = call.tiles;
        if (is_trits(tag)) pack_trits(call.from + codes, tiles.stride, tiles.group_size, call.to + payload);
        else pack_tile(call.from + codes, tiles.stride, width_of(tag), tiles.group_size, call.to + payload);
    });
}

void unpack_some(void *context, int64_t part) {
    const Packing &call = *static_cast<const Packing *>(context);
    each_tile(call.tiles, part, [&](int tag, int64_t codes, int64_t payload) {
        unpack_tile(call, call.from + payload, tag, call.to + codes);
    });
}

int64_t parts_of(const laq_tiles &tiles) { return (tiles.n_tiles + kTilesAtOnce - 1) / kTilesAtOnce; }

}  // namespace

int32_t check(const laq_tiles &tiles) {
    if (tiles.group_size != 32 && tiles.group_size != 64 && tiles.group_size != 128) return LAQ_BAD_SHAPE;
    if (tiles.n_tiles < 0 || tiles.stride < tiles.group_size) return LAQ_BAD_SHAPE;
    return std::all_of(tiles.bits, tiles.bits + tiles.n_tiles, is_tag) ? LAQ_OK : LAQ_BAD_TILE;
}

void pack(const Tier &tier, const laq_tiles &tiles, const uint8_t *codes, uint8_t *payload) {
    Packing call{tier, tiles, codes, payload};
    Pool::get().run(parts_of(tiles), pack_some, &call);
}

int32_t unpack(const Tier &tier, const laq_tiles &tiles, const uint8_t *payload, uint8_t *codes) {
    if (tiles.palettes == nullptr && std::any_of(tiles.bits, tiles.bits + tiles.n_tiles, is_palette)) return LAQ_BAD_TILE;
    Packing call{tier, tiles, payload, codes};
    Pool::get().run(parts_of(tiles), unpack_some, &call);
    return LAQ_OK;
}

}  // namespace laq
