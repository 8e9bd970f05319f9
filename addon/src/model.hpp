// Base weights: read once per process, shared by every engine and thread that uses the same file on the same device.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backends.hpp"
#include "hyperparameters.hpp"
#include "packed.hpp"

namespace mf {

// The linear layers an adapter may target, in the order of TARGETS in types.ts.
enum Target : int { ATTN_Q, ATTN_K, ATTN_V, ATTN_OUTPUT, FFN_GATE, FFN_UP, FFN_DOWN, TARGET_COUNT };

// Linear layers that read the same input. An adapter's A matrices of one site are applied together.
enum SiteId : int { SITE_QKV, SITE_ATTN_OUTPUT, SITE_GATE_UP, SITE_DOWN, SITE_COUNT };

struct TargetPlace {
    SiteId site;
    int    index;  // position among the site's targets
};
TargetPlace place_of(Target target);
int         targets_in(SiteId site);
Target      target_at(SiteId site, int index);

// One weight matrix as the device holds it; on the CPU several targets of a site may be stacked into one.
struct Part {
    struct Span {
        Target target;
        int    offset;  // first output row
        int    out;
    };
    ggml_tensor *     weight = nullptr;  // [in, out], or null if packed
    Packed            packed;
    ggml_tensor *     bias = nullptr;  // [out] or none
    int               out  = 0;
    std::vector<Span> spans;
    // Q4_1 weights are w = d q + m. Stored as Q4_0 (w' = d (q - 8)), the rest, m + 8 d per block of 32 inputs, is applied
    // to the block sums of the input: [in / 32][out], float32, exact. Empty for other weights.
    std::vector<float> correction;
};

struct Site {
    int               in = 0;
    std::vector<Part> parts;
    bool              corrected() const;
    bool              packed() const;
};

struct Layer {
    ggml_tensor *                attn_norm      = nullptr;
    ggml_tensor *                q_norm         = nullptr;
    ggml_tensor *                k_norm         = nullptr;
    ggml_tensor *                attn_post_norm = nullptr;
    ggml_tensor *                ffn_norm       = nullptr;
    ggml_tensor *                ffn_post_norm  = nullptr;
    std::array<Site, SITE_COUNT> sites;
};

class Model {
  public:
    // Returns the model already loaded from this file on this device, or loads it.
    //
    // `exact`: weights as stored and only ggml's own operations, so that logits equal libllama's bit for bit on the same
    // backend; slower, and a row's result depends on the shape of its batch.
    static std::shared_ptr<Model> open(const std::string & path, const std::string & device, int threads, bool exact);
    ~Model();
    Model(const Model &)             = delete;
    Model & operator=(const Model &) = delete;

    const Hyperparameters & h() const { return h_; }
    Backend &               backend() const { return *backend_; }
    // Whether the CPU's own operations (cpu_forward.hpp) are used.
    bool fused() const { return backend_->is_cpu() && !exact_; }
    // Whether adapters go through ggml's own products, each row group by itself (exact_adapter.hpp).
    bool        exact_adapters() const { return backend_->is_cpu() && exact_; }
    std::size_t weight_bytes() const { return weight_bytes_; }
    int         target_in(Target target) const;
    int         target_out(Target target) const;

    ggml_tensor *      token_embedding = nullptr;
    ggml_tensor *      output_norm     = nullptr;
    ggml_tensor *      output          = nullptr;  // lm_head; may share its data with token_embedding; null if packed
    Packed             packed_output;
    ggml_tensor *      rope_factors = nullptr;
    std::vector<Layer> layers;

  private:
    friend class ModelLoader;
    Model() = default;

    Hyperparameters                    h_;
    std::unique_ptr<Backend>           backend_;
    std::vector<ggml_context *>        contexts_;
    std::vector<ggml_backend_buffer_t> buffers_;
    std::size_t                        weight_bytes_ = 0;
    bool                               exact_        = false;
};

}  // namespace mf
