#include "memory.hpp"

#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mf {

bool zero_untouched(void * data, std::size_t bytes) {
#if defined(__linux__)
    const auto page  = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = reinterpret_cast<std::uintptr_t>(data);
    const auto first = (start + page - 1) / page * page;
    const auto end   = (start + bytes) / page * page;
    // Elsewhere than on Linux these pages may come back with what was in them.
    if (end <= first || madvise(reinterpret_cast<void *>(first), end - first, MADV_DONTNEED) != 0) {
        return false;
    }
    std::memset(data, 0, first - start);
    std::memset(reinterpret_cast<void *>(end), 0, start + bytes - end);
    return true;
#else
    (void) data;
    (void) bytes;
    return false;
#endif
}

void return_freed_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

}  // namespace mf
