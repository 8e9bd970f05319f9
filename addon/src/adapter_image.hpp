// Adapter weights in host memory, in the form the slots use: per layer and site, the A matrices of the site's targets one
// below the other, and each B transposed and scaled, all float16. For a model in exact mode: as the file has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "adapter_source.hpp"
#include "exact_adapter.hpp"
#include "image_memory.hpp"
#include "model.hpp"

namespace mf {

enum class HalfOrFloat { f32, f16, bf16 };

// One low-rank pair inside a file; see AdapterTensorPair in types.ts.
struct AdapterPair {
    Target      target;
    int         layer;
    int         rank;
    float       scale;
    std::size_t a_offset;
    HalfOrFloat a_type;
    std::size_t b_offset;
    HalfOrFloat b_type;
    int         permute_heads;
};

// Row of GGUF's B that holds row `row` of PEFT's: rotate-half halves become neighbouring pairs within each head.
int permuted_row(int row, int out, int heads);

class AdapterImage {
  public:
    struct Span {
        Target      target;
        int         rank;
        int         rank_offset;  // first row of this target's A within the site
        std::size_t a;            // offset of A [rank][in] in weights()
        std::size_t bt;           // offset of B transposed [rank][out]
    };
    struct SiteWeights {
        int               rank = 0;  // sum over the targets
        std::size_t       a    = 0;  // offset of the stacked A's
        std::vector<Span> spans;
    };

    // Throws adapter_invalid with a sentence where the pairs do not fit the model or the file.
    static std::shared_ptr<const AdapterImage> build(const Model & model, AdapterSource & source, std::vector<AdapterPair> pairs);

    const SiteWeights & site(int layer, SiteId id) const { return sites_[static_cast<std::size_t>(layer) * SITE_COUNT + id]; }
    const uint16_t *    weights() const { return weights_.data(); }
    // Null unless the model is in exact mode; then there are no weights().
    const ExactAdapter * exact() const { return exact_.get(); }
    std::size_t          bytes() const { return exact_ != nullptr ? exact_->bytes() : weights_.size() * sizeof(uint16_t); }
    int                  rank_max() const { return rank_max_; }

    // Whether the image was built for a model of this shape and mode.
    bool fits(const Model & model) const { return shape_ == shape_of(model); }

  private:
    static std::vector<int> shape_of(const Model & model);
    std::size_t             lay_out(const Model & model, std::size_t file_bytes, std::vector<AdapterPair> & pairs);

    std::vector<int>                    shape_;
    std::vector<SiteWeights>            sites_;
    ImageMemory                         weights_;
    std::unique_ptr<const ExactAdapter> exact_;
    int                                 rank_max_ = 0;
};

}  // namespace mf
