#include "gpu_slots.hpp"

#include <cstring>

#include "error.hpp"

namespace mf {

GpuSlots::GpuSlots(const Model & model, int slots, int rank) : model_(model), slots_(slots), rank_(rank) {
    const int              count  = model.h().layers * TARGET_COUNT;
    const ggml_init_params params = { ggml_tensor_overhead() * (2 * static_cast<std::size_t>(count) + 1), nullptr, true };
    context_                      = ggml_init(params);
    for (int i = 0; i < count; ++i) {
        const auto target = static_cast<Target>(i % TARGET_COUNT);
        a_.push_back(ggml_new_tensor_3d(context_, GGML_TYPE_F16, model.target_in(target), rank_, slots + 1));
        b_.push_back(ggml_new_tensor_3d(context_, GGML_TYPE_F16, rank_, model.target_out(target), slots + 1));
    }
    buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(context_, model.backend().buffer_type());
    if (buffer_ == nullptr) {
        ggml_free(context_);
        throw Error("out_of_memory", "the adapter slots do not fit into the memory of " + model.backend().device().name +
                                         "; use fewer slots or a lower highest rank");
    }
    ggml_backend_buffer_clear(buffer_, 0);
}

GpuSlots::~GpuSlots() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
}

void GpuSlots::set(int slot, const AdapterImage & image) {
    std::vector<uint16_t> slice;
    for (int layer = 0; layer < model_.h().layers; ++layer) {
        for (int t = 0; t < TARGET_COUNT; ++t) {
            const auto                 target = static_cast<Target>(t);
            const std::size_t          in     = model_.target_in(target);
            const std::size_t          out    = model_.target_out(target);
            const AdapterImage::Span * found  = nullptr;
            for (const auto & span : image.site(layer, place_of(target).site).spans) {
                found = span.target == target ? &span : found;
            }
            slice.assign(in * rank_, 0);
            if (found != nullptr) {
                std::memcpy(slice.data(), image.weights() + found->a, found->rank * in * sizeof(uint16_t));
            }
            ggml_backend_tensor_set(a(layer, target), slice.data(), slot * slice.size() * 2, slice.size() * 2);
            slice.assign(out * rank_, 0);
            if (found != nullptr) {
                for (std::size_t o = 0; o < out; ++o) {
                    for (int r = 0; r < found->rank; ++r) {
                        slice[o * rank_ + r] = image.weights()[found->bt + r * out + o];
                    }
                }
            }
            ggml_backend_tensor_set(b(layer, target), slice.data(), slot * slice.size() * 2, slice.size() * 2);
        }
    }
}

}  // namespace mf
