// Custom graph operations of the CPU: low-rank deltas with the offset part of split weights, and attention.
// Other backends compute the same with ggml's own operations (graph.cpp).
#pragma once

#include <ggml.h>

#include "step_state.hpp"

namespace mf {

// What an operation is bound to; lives as long as the engine.
struct SiteBinding {
    StepState *  state;
    const Site * site;
    SiteId       id;
    int          layer;
    bool         outputs;  // rows are the step's output rows
};
struct PartBinding {
    const SiteBinding * site;
    const Part *        part;
    std::atomic<int> *  next;  // work counter of a packed product
};
struct HeadBinding {
    StepState *          state;
    const PackedMatrix * matrix;
    std::atomic<int> *   next;
};
struct AttentionBinding {
    StepState *             state;
    const Hyperparameters * h;
    int                     layer;
    int                     window;
};

// u = A x for every row's adapter, and x rounded or its block sums, as the site's weights need: the first half of a site. dst is
// a token of order, not of data.
void site_inputs(ggml_tensor * dst, int thread, int threads, void * site_binding);

// y += B u, and the correction of split weights: second half, in place.
void part_outputs(ggml_tensor * dst, const ggml_tensor * y, const ggml_tensor * order, int thread, int threads,
                  void * part_binding);

// y = W x + B u for packed weights: the whole second half of a site. dst [out, rows], sources x and order.
void packed_part(ggml_tensor * dst, int thread, int threads, void * part_binding);

// Rounds x for the head; then logits = W x.
void head_inputs(ggml_tensor * dst, int thread, int threads, void * head_binding);
void packed_head(ggml_tensor * dst, int thread, int threads, void * head_binding);

// softmax(q k^T scale) v over each row's own sequence.
void attention(ggml_tensor * dst, int thread, int threads, void * attention_binding);

}  // namespace mf
