#define MF_KERNELS_NAME "avx512"
#define MF_KERNELS_SYMBOL kernels_avx512
#include "kernels_impl.hpp"
