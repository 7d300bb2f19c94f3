#include "isa_scalar.hpp"

namespace laq {
static bool runs_here() { return true; }
extern const Tier scalar_tier = tier_of<Scalar>("scalar", runs_here);
}  // namespace laq
