#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "isa_neon.hpp"

namespace laq {
// HWCAP_ASIMDDP of the Linux kernel; other systems on ARM that we know all have it.
static bool runs_here() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
#else
    return true;
#endif
}
extern const Tier neon_tier = tier_of<Neon>("neon-dotprod", runs_here);
}  // namespace laq
