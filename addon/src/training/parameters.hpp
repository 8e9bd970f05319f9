// What is trained: low-rank pairs or a prefix, in one flat float32 array each of values, gradients and Adam's moments.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../model.hpp"
#include "../team.hpp"

namespace mf {

struct TrainerOptions {
    bool                           prefix = false;  // P-Tuning v2 instead of LoRA
    std::array<bool, TARGET_COUNT> targets{};
    int                            rank          = 0;
    float                          scale         = 1;
    float                          dropout       = 0;
    int                            prefix_tokens = 0;
    uint32_t                       seed          = 0;
    int                            rows_max      = 0;
    bool                           recompute     = false;
    float                          share         = 0.3F;
};

// Gradients are computed this many times too large. Products on the way back round their inputs to 8 bits with a float16 scale
// per block, and without it those scales would lie among float16's smallest numbers, which have few bits or none (Micikevicius
// et al. 2018, loss scaling). A power of two: it changes nothing else.
inline constexpr float GRADIENT_SCALE = 16384.0F;

struct UpdateOptions {
    double learning_rate;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
    double clip_norm;
};

// Random numbers that depend on nothing but their place (SplitMix64 over a counter; Steele et al. 2014).
uint64_t     mix(uint64_t x);
inline float unit(uint64_t bits) { return static_cast<float>(bits >> 40U) * 0x1p-24F; }  // [0, 1)

class Parameters {
  public:
    // The pairs of one site: A matrices of its trained targets stacked [ranks][in], each B transposed [rank][out].
    struct SitePairs {
        int         ranks = 0;  // 0: nothing trained here
        std::size_t a     = 0;
        struct Pair {
            bool        trained = false;
            int         rank_at = 0;  // row of A, column of u
            std::size_t bt      = 0;
            int         out     = 0;
        } pairs[3];
    };
    struct PrefixPlace {
        std::size_t k = 0;  // [prefix_tokens][kv_width]
        std::size_t v = 0;
    };

    Parameters(const Model & model, const TrainerOptions & options);

    std::size_t size() const { return size_; }
    // Without the padding between arrays.
    std::size_t         trained() const { return trained_; }
    const SitePairs &   site(int layer, SiteId id) const { return sites_[static_cast<std::size_t>(layer) * SITE_COUNT + id]; }
    const PrefixPlace & prefix(int layer) const { return prefixes_[layer]; }
    int                 ranks_max() const { return ranks_max_; }

    float *       values() { return values_.data(); }
    const float * values() const { return values_.data(); }
    float *       gradients() { return gradients_.data(); }  // times GRADIENT_SCALE
    std::size_t   bytes() const { return 4 * size_ * sizeof(float); }

    struct Update {
        double norm;
        bool   applied;
    };
    // Clips by the global norm and makes one AdamW step (Loshchilov & Hutter 2019). A norm that is not finite changes nothing.
    // The gradients are cleared.
    Update update(Session & session, const UpdateOptions & options);

    uint64_t steps() const { return steps_; }
    // Values, moments and step count.
    void        write(std::vector<uint8_t> & out) const;
    std::size_t read(const uint8_t * from, std::size_t size);

  private:
    void place(const Model & model, const TrainerOptions & options);
    void initialise(const Model & model, const TrainerOptions & options);

    std::vector<SitePairs>   sites_;
    std::vector<PrefixPlace> prefixes_;
    std::size_t              size_      = 0;
    std::size_t              trained_   = 0;
    int                      ranks_max_ = 0;
    uint64_t                 steps_     = 0;
    Floats                   values_;
    Floats                   gradients_;
    Floats                   first_;
    Floats                   second_;
};

}  // namespace mf
