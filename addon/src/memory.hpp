// What the system is told about memory that this process has and does not use.
#pragma once

#include <cstddef>

namespace mf {

// Zeroes private memory of this process by giving its pages back: they take no memory until somebody writes to them. False where
// the system cannot; then nothing has changed.
bool zero_untouched(void * data, std::size_t bytes);

// Gives back what the allocator keeps of memory that was freed. Some milliseconds; nothing where the allocator has no such call.
void return_freed_memory();

}  // namespace mf
