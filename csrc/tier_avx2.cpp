#include "isa_avx2.hpp"

namespace laq {
static bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}
extern const Tier avx2_tier = tier_of<Avx2>("avx2", runs_here);
}  // namespace laq
