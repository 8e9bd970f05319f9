#define MF_KERNELS_NAME "avx2"
#define MF_KERNELS_SYMBOL kernels_avx2
#include "kernels_impl.hpp"
