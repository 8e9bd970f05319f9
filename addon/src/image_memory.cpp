#include "image_memory.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace mf {

// Kept at most. Several of the usual adapters (5 MiB for a small base, 20 MiB for 7B at rank 8); little beside any base.
static constexpr std::size_t KEPT_BYTES_MAX = 64U << 20U;
static constexpr std::size_t PAGE_BYTES     = 4096;
// Images that may come at once and find memory ready.
static constexpr int SPARES = 2;

#if defined(__SANITIZE_ADDRESS__)
static constexpr bool KEEPS = false;  // so that the sanitizer sees the end of every image, and uses after it
#else
static constexpr bool KEEPS = true;
#endif

namespace {

struct Block {
    void *      data;
    std::size_t bytes;
};

Block allocate(std::size_t bytes) {
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_ADDRESS__)
    // Straight from the system: the C library would keep some of it after it was given back, in ways hard to foresee.
    bytes       = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    void * data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        throw std::bad_alloc();
    }
    return { data, bytes };
#else
    return { ::operator new(bytes, std::align_val_t(64)), bytes };
#endif
}

void give_back(const Block & block) {
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_ADDRESS__)
    munmap(block.data, block.bytes);
#else
    ::operator delete(block.data, std::align_val_t(64));
#endif
}

class Pool {
  public:
    int fitting(std::size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return static_cast<int>(std::count_if(kept_.begin(), kept_.end(), [&](const Block & b) { return fits(b, bytes); }));
    }

    // The smallest that fits of what is kept, else {nullptr, 0}.
    Block take(std::size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto                              best = kept_.end();
        for (auto it = kept_.begin(); it != kept_.end(); ++it) {
            if (fits(*it, bytes) && (best == kept_.end() || it->bytes < best->bytes)) {
                best = it;
            }
        }
        if (best == kept_.end()) {
            return { nullptr, 0 };
        }
        const Block found = *best;
        kept_.erase(best);
        bytes_ -= found.bytes;
        return found;
    }

    void put(const Block & block) {
        std::deque<Block> out;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            kept_.push_back(block);
            bytes_ += block.bytes;
            while (bytes_ > KEPT_BYTES_MAX) {
                bytes_ -= kept_.front().bytes;
                out.push_back(kept_.front());
                kept_.pop_front();
            }
        }
        for (const Block & old : out) {
            give_back(old);
        }
    }

  private:
    // Large enough, and at most a quarter is wasted.
    static bool fits(const Block & block, std::size_t bytes) {
        return block.bytes >= bytes && block.bytes - bytes <= bytes / 4 + PAGE_BYTES;
    }

    std::mutex        mutex_;
    std::deque<Block> kept_;  // longest kept first
    std::size_t       bytes_ = 0;
};

// Never destroyed: images may go after the destructors of statics have run.
Pool & pool() {
    static Pool & one = *new Pool();
    return one;
}

}  // namespace

bool ImageMemory::is_prepared(std::size_t count) {
    const std::size_t bytes = count * sizeof(uint16_t);
    return !KEEPS || bytes == 0 || bytes > KEPT_BYTES_MAX / SPARES || pool().fitting(bytes) >= SPARES;
}

void ImageMemory::prepare(std::size_t count) {
    try {
        while (!is_prepared(count)) {
            const Block block = allocate(count * sizeof(uint16_t));
            std::memset(block.data, 0, block.bytes);
            pool().put(block);
        }
    } catch (const std::bad_alloc &) {
    }
}

ImageMemory::ImageMemory(std::size_t count) : size_(count) {
    const std::size_t bytes = count * sizeof(uint16_t);
    if (bytes == 0) {
        return;
    }
    Block block = KEEPS ? pool().take(bytes) : Block{ nullptr, 0 };
    if (block.data == nullptr) {
        block = allocate(bytes);
    }
    data_     = static_cast<uint16_t *>(block.data);
    capacity_ = block.bytes;
}

ImageMemory::~ImageMemory() {
    if (data_ == nullptr) {
        return;
    }
    const Block block{ data_, capacity_ };
    if (KEEPS) {
        pool().put(block);
    } else {
        give_back(block);
    }
}

ImageMemory::ImageMemory(ImageMemory && other) noexcept { *this = std::move(other); }

ImageMemory & ImageMemory::operator=(ImageMemory && other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
}

}  // namespace mf
