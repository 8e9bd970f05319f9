// The forward pass of one step on the CPU: mixed rows, each under its own adapter or none, over the key/value cache.
// Other devices, and the exact mode, compute the same with ggml's own operations (graph.cpp).
#pragma once

#include <vector>

#include "adapter_image.hpp"
#include "kv_cache.hpp"
#include "products.hpp"

namespace mf {

struct ForwardRows {
    int             rows;
    const int32_t * tokens;
    const int32_t * positions;
    const int32_t * sequences;
    const int32_t * cells;  // where K and V of each row go
    const int32_t * outputs;
    int             output_count;
    bool            hidden;  // final hidden states instead of logits
};

class CpuForward {
  public:
    CpuForward(const Model & model, const KvCache & cache);

    // `images`: each row's adapter, or null. Returns [outputs][vocabulary or embedding], good until the next call; null if there
    // are no outputs.
    float * run(Session & session, const ForwardRows & rows, const std::vector<const AdapterImage *> & images);

  private:
    // Consecutive rows under the same adapter.
    struct Segment {
        int                  first;
        int                  count;
        const AdapterImage * image;
    };
    // Up to ATTENTION_ROWS_MAX consecutive rows of one sequence.
    struct RowBlock {
        int first;
        int count;
    };
    template <typename ImageOf> static void segment(int rows, ImageOf image_of, std::vector<Segment> & out);
    void                                    resize(const ForwardRows & rows);
    // y [rows][outputs of the site] = W x + bias + B A x, where `prepare(row)` makes row `row` of `x` first.
    template <typename Prepare>
    void site(Session & session, int layer, SiteId id, const std::vector<Segment> & segments, int rows, float * x, float * y,
              Prepare prepare);
    void low_rank_inputs(Session & session, int layer, SiteId id, const std::vector<Segment> & segments, const float * x, int in);
    void add_deltas(int layer, SiteId id, const std::vector<Segment> & segments, const Part & part, int o0, int o1, float * y,
                    std::size_t stride) const;
    void store(const ForwardRows & rows, int layer, int row);
    void attend(Session & session, const ForwardRows & rows, int layer);
    float * head(Session & session, int rows, bool hidden);

    const Model &           model_;
    const Hyperparameters & h_;
    const KvCache &         cache_;
    std::vector<SiteShape>  shapes_;
    std::vector<Segment>    segments_;         // over all rows
    std::vector<Segment>    output_segments_;  // over the output rows (the last block's second half)
    std::vector<RowBlock>   blocks_;
    Rotation                global_;
    Rotation                local_;
    RoundedRows             rounded_;
    std::size_t             u_stride_ = 0;
    Floats                  x_;         // [rows][embedding], the residual stream
    Floats                  normed_;    // [rows][embedding]
    Floats                  qkv_;       // [rows][q | k | v]
    Floats                  attended_;  // [rows][q]
    Floats                  mixed_;     // [rows][embedding], what a half of a block adds
    Floats                  gate_up_;   // [rows][2 feed_forward]
    Floats                  wide_;      // [rows][feed_forward]
    Floats                  u_;         // [rows][u_stride]: low-rank activations of the site under way
    Floats                  sums_;      // [rows][in / 32]
    Floats                  part_;      // one part's outputs, where a site has several
    Floats                  logits_;
    Floats                  scratch_;  // attention, per thread
};

}  // namespace mf
