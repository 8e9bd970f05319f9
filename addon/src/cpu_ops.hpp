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
};
struct AttentionBinding {
    StepState *             state;
    const Hyperparameters * h;
    int                     layer;
    int                     window;
};

// u = A x for every row's adapter, and block sums of x: first half of a delta. dst is a token of order, not of data.
void site_inputs(ggml_tensor * dst, int thread, int threads, void * site_binding);

// y += B u, and the correction of split weights: second half, in place.
void part_outputs(ggml_tensor * dst, const ggml_tensor * y, const ggml_tensor * order, int thread, int threads,
                  void * part_binding);

// softmax(q k^T scale) v over each row's own sequence.
void attention(ggml_tensor * dst, int thread, int threads, void * attention_binding);

}  // namespace mf
