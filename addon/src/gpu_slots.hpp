// Adapter slots of a GPU: for every layer and target one stack of A matrices and one of B matrices, a slot being one
// slice. ggml's gathered matrix product picks each row's slice. Ranks are padded with zeros to the stack's rank; one more
// slot, all zeros, serves rows without an adapter.
#pragma once

#include <vector>

#include "adapter_image.hpp"

namespace mf {

class GpuSlots {
  public:
    GpuSlots(const Model & model, int slots, int rank);
    ~GpuSlots();
    GpuSlots(const GpuSlots &)             = delete;
    GpuSlots & operator=(const GpuSlots &) = delete;

    int           zero_slot() const { return slots_; }
    ggml_tensor * a(int layer, Target target) const { return a_[static_cast<std::size_t>(layer) * TARGET_COUNT + target]; }
    ggml_tensor * b(int layer, Target target) const { return b_[static_cast<std::size_t>(layer) * TARGET_COUNT + target]; }

    void set(int slot, const AdapterImage & image);

  private:
    const Model &              model_;
    int                        slots_;
    int                        rank_;
    ggml_context *             context_ = nullptr;
    ggml_backend_buffer_t      buffer_  = nullptr;
    std::vector<ggml_tensor *> a_;  // [in, rank, slots + 1] float16
    std::vector<ggml_tensor *> b_;  // [rank, out, slots + 1] float16
};

}  // namespace mf
