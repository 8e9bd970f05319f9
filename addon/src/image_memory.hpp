// Memory of adapter images. What images that went had is kept for those that come, up to a limit: touching pages for the
// first time takes longer than reading and converting an adapter does, and on busy machines many times as long.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mf {

class ImageMemory {
  public:
    ImageMemory() = default;
    // Room for `count` halves, with whatever was there before. Throws std::bad_alloc.
    explicit ImageMemory(std::size_t count);
    ~ImageMemory();
    ImageMemory(ImageMemory && other) noexcept;
    ImageMemory & operator=(ImageMemory && other) noexcept;
    ImageMemory(const ImageMemory &)             = delete;
    ImageMemory & operator=(const ImageMemory &) = delete;

    // Whether the next images of `count` halves will find memory that was touched before.
    static bool is_prepared(std::size_t count);
    // Sees to that; takes milliseconds, and gives up where there is no memory.
    static void prepare(std::size_t count);

    uint16_t *       data() { return data_; }
    const uint16_t * data() const { return data_; }
    std::size_t      size() const { return size_; }

  private:
    uint16_t *  data_     = nullptr;
    std::size_t size_     = 0;
    std::size_t capacity_ = 0;  // bytes
};

}  // namespace mf
