#include "kernels.hpp"

#include <cstdlib>
#include <string>

namespace mf {

extern const Kernels kernels_baseline;
#if defined(MF_X86_KERNELS)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
#endif

// MODELFACTORY_KERNELS=baseline|avx2|avx512 asks for less than the processor has, so that tests on one machine reach every
// variant.
static const Kernels & choose() {
    const char *      asked = std::getenv("MODELFACTORY_KERNELS");
    const std::string want  = asked == nullptr ? "" : asked;
    if (want == "baseline") {
        return kernels_baseline;
    }
#if defined(MF_X86_KERNELS)
    __builtin_cpu_init();
    if (want != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        return want != "avx512" && __builtin_cpu_supports("avx512vnni") ? kernels_avx512vnni : kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        return kernels_avx2;
    }
#endif
    return kernels_baseline;
}

const Kernels & kernels() {
    static const Kernels & chosen = choose();
    return chosen;
}

}  // namespace mf
