// Weights packed for the 8-bit dot products of kernels/ (see PackedMatrix there); made once, when a model is loaded.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"

namespace mf {

// Whether this processor's kernels take a matrix of this type and shape.
bool can_pack(ggml_type type, int64_t in, int64_t out);

class Packed {
  public:
    bool                 empty() const { return bytes_.empty(); }
    std::size_t          bytes() const { return bytes_.size(); }
    const PackedMatrix & matrix() const { return matrix_; }

    void allocate(ggml_type type, int in, int out);
    // Takes rows [first, first + count) in the file's layout.
    void set_rows(ggml_type type, int first, int count, const uint8_t * rows);

  private:
    std::vector<uint8_t> bytes_;
    PackedMatrix         matrix_;
};

}  // namespace mf
