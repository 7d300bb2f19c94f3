#include "isa_avx512.hpp"

namespace laq {
static bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
}
extern const Tier avx512_vbmi_tier = tier_of<Avx512>("avx512-vbmi", runs_here);
}  // namespace laq
