#define MF_KERNELS_NAME "baseline"
#define MF_KERNELS_SYMBOL kernels_baseline
#include "kernels_impl.hpp"
