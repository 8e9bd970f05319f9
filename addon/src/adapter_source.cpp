#include "adapter_source.hpp"

#include <algorithm>

#include "error.hpp"

namespace mf {

// Fits into the second-level cache, so that what the system copies there is converted from there.
static constexpr std::size_t WINDOW_BYTES = 256U << 10U;

static bool seek(std::FILE * file, std::size_t offset, int whence) {
#ifdef _WIN32
    return _fseeki64(file, static_cast<long long>(offset), whence) == 0;
#else
    return fseeko(file, static_cast<off_t>(offset), whence) == 0;
#endif
}

AdapterFile::AdapterFile(const std::string & path) : file_(std::fopen(path.c_str(), "rb")) {
    require(file_ != nullptr, "adapter_invalid", "the adapter file cannot be opened");
    // The window is the buffer.
    std::setvbuf(file_, nullptr, _IONBF, 0);
    const bool ends = seek(file_, 0, SEEK_END);
#ifdef _WIN32
    const auto bytes = _ftelli64(file_);
#else
    const auto bytes = ftello(file_);
#endif
    if (!ends || bytes < 0) {
        std::fclose(file_);
        throw Error("adapter_invalid", "the adapter file cannot be read");
    }
    bytes_ = static_cast<std::size_t>(bytes);
}

AdapterFile::~AdapterFile() { std::fclose(file_); }

const uint8_t * AdapterFile::read(std::size_t offset, std::size_t count) {
    if (offset < at_ || offset + count > at_ + filled_) {
        const std::size_t wanted = std::max(count, std::min(WINDOW_BYTES, bytes_ - offset));
        if (window_.size() < wanted) {
            window_.resize(wanted);
        }
        at_     = offset;
        filled_ = seek(file_, offset, SEEK_SET) ? std::fread(window_.data(), 1, wanted, file_) : 0;
        require(filled_ >= count, "adapter_invalid", "the adapter file ended early; it was changed while it was read");
    }
    return window_.data() + (offset - at_);
}

}  // namespace mf
