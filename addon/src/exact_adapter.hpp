// An adapter for the exact mode: its matrices in the type and order that libllama holds them in, for ggml's own products.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <memory>
#include <vector>

#include "adapter_source.hpp"
#include "model.hpp"

namespace mf {

struct AdapterPair;

class ExactAdapter {
  public:
    // y += scale · b (a x); null where the adapter leaves the target as it is.
    struct Pair {
        ggml_tensor * a     = nullptr;  // [in, rank]
        ggml_tensor * b     = nullptr;  // [rank, out]
        float         scale = 0;
    };

    // The pairs were checked against model and file. Throws adapter_invalid where a value is not a number.
    static std::unique_ptr<const ExactAdapter> build(const Model & model, AdapterSource & source,
                                                     const std::vector<AdapterPair> & pairs);
    ~ExactAdapter();
    ExactAdapter(const ExactAdapter &)             = delete;
    ExactAdapter & operator=(const ExactAdapter &) = delete;

    const Pair & pair(int layer, Target target) const { return pairs_[static_cast<std::size_t>(layer) * TARGET_COUNT + target]; }
    std::size_t  bytes() const { return buffer_ == nullptr ? 0 : ggml_backend_buffer_get_size(buffer_); }

  private:
    ExactAdapter() = default;

    std::vector<Pair>     pairs_;
    ggml_context *        context_ = nullptr;
    ggml_backend_buffer_t buffer_  = nullptr;
};

}  // namespace mf
