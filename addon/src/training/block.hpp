// One transformer block, forward and back. The gradient is written out by hand: only low-rank pairs and prefixes get one, the
// base's weights stay as they are.
#pragma once

#include "attention.hpp"
#include "frozen.hpp"
#include "parameters.hpp"

namespace mf {

// The rows of one call: examples one after another.
struct RowsInfo {
    int                  rows     = 0;
    int                  examples = 0;
    const int32_t *      tokens   = nullptr;
    const int32_t *      starts   = nullptr;
    std::vector<int32_t> positions;    // within the example, after the prefix
    uint64_t             call    = 0;  // which call of the trainer: dropout masks differ between calls
    bool                 adapter = true;
    bool                 dropout = false;
};

// What the way back needs of one block. Sizes in floats per row, in the order in which they are computed.
struct Activations {
    Floats x;              // input [embedding]
    Floats raw;            // q and k before their norms [q + k], models with qk_norm
    Floats qkv;            // after RoPE [q + 2 kv]
    Floats attended;       // [q]
    Floats lse;            // [heads]
    Floats mixed;          // attention's output before its norm [embedding], models with post norms
    Floats middle;         // after attention [embedding]
    Floats gate_up;        // [2 feed_forward]
    Floats made;           // feed-forward's output before its norm [embedding], models with post norms
    Floats u[SITE_COUNT];  // scaled low-rank activations [ranks]

    void               resize(const Model & model, const Parameters & parameters, int rows, bool only_input);
    std::size_t        bytes() const;
    static std::size_t floats_per_row(const Model & model, const Parameters & parameters);
};

// Everything that blocks share: scratch, and tables of angles.
class BlockContext {
  public:
    BlockContext(const Model & model, const TransposedModel * transposed, Parameters & parameters,
                 const TrainerOptions & options);

    void begin(Session & session, const RowsInfo & rows);

    // x in `a.x`; fills the rest of `a` and writes the block's output.
    void forward(Session & session, int layer, Activations & a, float * out);
    // dx: gradient of the output, replaced by that of the input (left undefined if `below` is false: nothing is trained there).
    void backward(Session & session, int layer, Activations & a, float * dx, bool below);

    std::size_t        bytes() const;
    static std::size_t bytes_for(const Model & model, const TrainerOptions & options);

  private:
    AttentionShape attention_shape(int layer) const;
    float *        dropped(Session & session, const float * x, int in, int layer, SiteId id, Floats & to);
    void           drop(float * x, int row, int in, int layer, SiteId id) const;
    // y [rows][all outputs of the site] = W x + bias + B A x · scale
    void site_forward(Session & session, int layer, SiteId id, const float * x, float * y, float * u);
    // Adds the gradients of the site's pairs; dx [rows][in] = Wᵀ dy + Aᵀ Bᵀ dy, if wanted.
    void site_backward(Session & session, int layer, SiteId id, const float * x, const float * u, const float * dy, float * dx);

    const Model &           model_;
    const Hyperparameters & h_;
    const TransposedModel * transposed_;
    Parameters &            parameters_;
    TrainerOptions          options_;
    RowsInfo                rows_;
    Rotation                global_;
    Rotation                local_;
    std::vector<SiteShape>  shapes_;  // per layer and site
    RoundedRows             rounded_;
    Floats                  sums_;     // block sums for corrected weights
    Floats                  normed_;   // [rows][embedding]
    Floats                  wide_;     // [rows][feed_forward]: gated values
    Floats                  outputs_;  // [rows][widest site output]
    Floats                  d_wide_;
    Floats                  d_narrow_;
    Floats                  du_;
    Floats                  masked_;
    Floats                  attention_;
    Floats                  part_;
};

// dx += the gradient through a norm (rms_norm in products.hpp).
void rms_norm_back(const float * x, const float * w, const float * dy, int n, float epsilon, float * dx);

}  // namespace mf
