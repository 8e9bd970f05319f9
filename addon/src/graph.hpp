// Builds the transformer's graph for one shape of step out of ggml's own operations: for GPUs, and for the exact mode.
#pragma once

#include <memory>
#include <vector>

#include "adapter_image.hpp"
#include "gpu_slots.hpp"
#include "kv_cache.hpp"

namespace mf {

// Neighbouring rows under one adapter.
struct Run {
    int  slot  = 0;
    int  first = 0;
    int  count = 0;
    bool operator==(const Run & o) const { return slot == o.slot && first == o.first && count == o.count; }
};

struct GraphShape {
    int  rows    = 0;
    int  outputs = 0;      // 0: only the cache is filled
    int  cells   = 0;      // cells that attention looks at
    bool lora    = false;  // gathered products over the slots of a GPU
    bool hidden  = false;  // final hidden states instead of logits
    // Exact mode: rows with adapters, and the same among the outputs alone.
    std::vector<Run> runs;
    std::vector<Run> output_runs;
    bool             operator==(const GraphShape & o) const {
                    return rows == o.rows && outputs == o.outputs && cells == o.cells && lora == o.lora && hidden == o.hidden &&
                           runs == o.runs && output_runs == o.output_runs;
    }
};

// The exact mode's adapters, by slot.
using SlotImages = std::vector<std::shared_ptr<const AdapterImage>>;

class Graph {
  public:
    // The graph holds on to no adapter: it must go when a slot of its runs is filled anew or cleared.
    Graph(const Model & model, const KvCache & cache, const GpuSlots * slots, const SlotImages & images,
          const GraphShape & shape);
    ~Graph();
    Graph(const Graph &)             = delete;
    Graph & operator=(const Graph &) = delete;

    const GraphShape & shape() const { return shape_; }
    ggml_cgraph *      graph() const { return graph_; }

    // Inputs; null where the shape does not need them.
    ggml_tensor * tokens       = nullptr;  // I32 [rows]
    ggml_tensor * positions    = nullptr;  // I32 [rows]
    ggml_tensor * cells        = nullptr;  // I64 [rows]: where K and V of each row go
    ggml_tensor * output_rows  = nullptr;  // I32 [outputs]
    ggml_tensor * mask         = nullptr;  // F16 [cells, rows]
    ggml_tensor * mask_local   = nullptr;  // the same within the sliding window
    ggml_tensor * slots        = nullptr;  // I32 [1, rows], with adapters
    ggml_tensor * output_slots = nullptr;  // I32 [1, outputs]
    ggml_tensor * result       = nullptr;  // F32 [vocabulary or embedding, outputs]

  private:
    struct Outputs {
        ggml_tensor * of[3];
    };
    void          build();
    void          allocate();
    ggml_tensor * input(ggml_type type, int64_t n0, int64_t n1, const char * name);
    ggml_tensor * norm(ggml_tensor * x, ggml_tensor * weight);
    Outputs       linear(ggml_tensor * x, int layer, SiteId id, bool outputs);
    ggml_tensor * delta(ggml_tensor * x, int layer, Target target, bool outputs);
    ggml_tensor * adapted(ggml_tensor * y, ggml_tensor * x, int layer, Target target, bool outputs);
    ggml_tensor * attend(ggml_tensor * x, int layer);
    ggml_tensor * feed_forward(ggml_tensor * x, int layer, bool outputs);
    void          expand(ggml_tensor * t) { ggml_build_forward_expand(graph_, t); }

    const Model &           model_;
    const Hyperparameters & h_;
    const KvCache &         cache_;
    const GpuSlots *        slots_;
    const SlotImages &      images_;
    GraphShape              shape_;
    ggml_context *          ctx_       = nullptr;
    ggml_cgraph *           graph_     = nullptr;
    ggml_gallocr_t          allocator_ = nullptr;
};

}  // namespace mf
