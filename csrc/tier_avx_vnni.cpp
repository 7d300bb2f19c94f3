#include <cpuid.h>

#include "isa_avx2.hpp"

namespace laq {
// Not every compiler knows this name in __builtin_cpu_supports: leaf 7.1, eax, bit 4.
static bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
static bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2") && has_avx_vnni();
}
extern const Tier avx_vnni_tier = tier_of<Avx2>("avx-vnni", runs_here);
}  // namespace laq
