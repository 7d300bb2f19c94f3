// The kernels, written once over an instruction set `I`; every tier includes this file with its own flags.
//
// All is in an anonymous namespace and nothing from std is instantiated: a function compiled here for AVX-512
// must never be the copy that the linker keeps for a machine without it.
//
// An instruction set has
//   Bytes, Ints, Floats      vectors over one part of a line: 64 / kParts bytes, 16 / kParts rows
//   kParts                   parts of a line
//   kFew                     inputs of two planes that a tile in registers is multiplied with: 1 or 4
//   kBlock                   inputs whose sums fit into registers, with one plane of activations
//   load, store              a part of a line
//   shifted<BY>              bytes shifted down, or up if BY < 0; bits of neighbouring bytes may come in
//   masked<M>, either        a & M in each byte, a | b
//   dot<B>                   add products of four neighbouring bytes to each row's 32-bit sum; the first are codes
//                            of 8 bits, or else not above 127
//   kOffset8                 what `dot` takes off codes of 8 bits
//   Table                    256 bytes in registers or near them; entries(Bytes) looks each byte up
//   Sixteen                  the same of 16 bytes, for bytes below 16
//   next_trit                the first of the digits 0, 1, 2 that bytes hold, which it takes off: byte x 3 div 256
//   spread, widen            eight numbers to eight bytes, sixteen bytes to the integers of a part
#pragma once

#include "attention.hpp"
#include "codes.hpp"
#include "dense.hpp"
#include "few_inputs.hpp"
#include "many_inputs.hpp"
#include "quantize.hpp"
#include "rounding.hpp"
#include "tiles.hpp"

namespace laq {
namespace {

template <class I>
constexpr Tier tier_of(const char *name, bool (*runs_here)()) {
    return {name, runs_here, I::kFew, quantize_kernel, vector_kernel<I>, block_kernel<I>, attend_kernel<I>,
            attention_scratch, multiply_kernel<I>, levels_kernel<I>, errors_kernel, rounding_kernel};
}

}  // namespace
}  // namespace laq
