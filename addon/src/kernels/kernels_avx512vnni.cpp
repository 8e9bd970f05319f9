#define MF_KERNELS_NAME "avx512vnni"
#define MF_KERNELS_SYMBOL kernels_avx512vnni
#include "kernels_impl.hpp"
