// Where the bytes of an adapter come from: memory, or a file that is read a block at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace mf {

class AdapterSource {
  public:
    AdapterSource()                                  = default;
    AdapterSource(const AdapterSource &)             = delete;
    AdapterSource & operator=(const AdapterSource &) = delete;
    virtual ~AdapterSource()                         = default;

    std::size_t bytes() const { return bytes_; }

    // `count` bytes from `offset` on, not aligned, good until the next call. The range lies within bytes(). Cheapest with
    // rising offsets. Throws adapter_invalid if a file turns out shorter than it was.
    virtual const uint8_t * read(std::size_t offset, std::size_t count) = 0;

  protected:
    std::size_t bytes_ = 0;
};

// Does not own the bytes.
class AdapterBytes final : public AdapterSource {
  public:
    AdapterBytes(const uint8_t * data, std::size_t bytes) : data_(data) { bytes_ = bytes; }
    const uint8_t * read(std::size_t offset, std::size_t) override { return data_ + offset; }

  private:
    const uint8_t * data_;
};

class AdapterFile final : public AdapterSource {
  public:
    // Throws adapter_invalid if the file cannot be opened.
    explicit AdapterFile(const std::string & path);
    ~AdapterFile() override;
    const uint8_t * read(std::size_t offset, std::size_t count) override;

  private:
    std::FILE *          file_;
    std::vector<uint8_t> window_;
    std::size_t          at_     = 0;  // offset of the window
    std::size_t          filled_ = 0;
};

}  // namespace mf
