// Searching and rounding of float matrices, and packing what comes of it.
#pragma once

#include "tier.hpp"

namespace laq {

// encode.cpp
int32_t check(const laq_source &source);
int32_t errors(const Tier &tier, const laq_source &source, float *out);
int32_t round(const Tier &tier, const laq_source &source, const laq_rounding &rounding);

// pack.cpp
int32_t check(const laq_tiles &tiles);
void pack(const Tier &tier, const laq_tiles &tiles, const uint8_t *codes, uint8_t *payload);
int32_t unpack(const Tier &tier, const laq_tiles &tiles, const uint8_t *payload, uint8_t *codes);

}  // namespace laq
