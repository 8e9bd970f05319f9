// One engine: a key/value cache, adapter slots and samplers over a model; computes one mixed batch at a time.
#pragma once

#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cpu_forward.hpp"
#include "graph.hpp"
#include "sampler.hpp"

namespace mf {

struct EngineOptions {
    int  kv_cells         = 0;
    int  sequences_max    = 0;
    int  batch_tokens_max = 0;
    int  slots            = 0;
    int  slot_rank_max    = 0;
    bool kv_f32           = false;
};

struct StepBatch {
    const int32_t * tokens;
    const int32_t * positions;
    const int32_t * sequences;
    const int32_t * slots;
    int             rows;
    const int32_t * outputs;
    const int32_t * samplers;
    int             output_count;
    bool            want_logits;
    bool            want_hidden;
    const int32_t * targets = nullptr;  // per output: the token to be rated, or -1; null = none
};

struct StepResult {
    std::vector<Choice> choices;
    std::vector<float>  values;  // logits or hidden states, [outputs][width]
    // Per output, if there were targets: natural log-probability of the target (0 for none), and whether it was the likeliest.
    std::vector<float>   target_logprobs;
    std::vector<uint8_t> target_hits;
    int64_t              compute_micros = 0;
};

class Engine {
  public:
    Engine(std::shared_ptr<Model> model, std::shared_ptr<const Vocabulary> vocabulary, const EngineOptions & options);

    const KvCache & cache() const { return cache_; }
    void            set_slot(int slot, std::shared_ptr<const AdapterImage> image);
    void            clear_slot(int slot);
    void            trim_sequence(int sequence, int length);
    void            share_sequence(int source, int destination, int length);
    int             sequence_length(int sequence) const;
    // Fills the first `length` positions of an empty sequence: keys and values of each layer, [length][kv_width], float32.
    void          load_prefix(int sequence, const std::vector<const float *> & keys, const std::vector<const float *> & values,
                              int length);
    const Model & model() const { return *model_; }
    int           create_sampler(SamplerOptions options);
    void          accept_tokens(int sampler, const int32_t * tokens, std::size_t count);
    void          free_sampler(int sampler);
    StepResult    step(const StepBatch & batch);

  private:
    void       check(const StepBatch & batch) const;
    StepResult compute(const StepBatch & batch);
    void       check_sequence(int sequence) const;
    void       take_cells(const StepBatch & batch);
    // Logits or hidden states, [outputs][width].
    float * compute_on_cpu(const StepBatch & batch, int & width);
    float * compute_graph(const StepBatch & batch, int & width);
    Graph & graph_for(const GraphShape & shape);
    void    forget_graphs_of(int slot);
    void    set_inputs(const Graph & graph, const StepBatch & batch);
    void    fill_mask(ggml_tensor * mask, const StepBatch & batch, int window) const;

    std::shared_ptr<Model>                            model_;
    std::shared_ptr<const Vocabulary>                 vocabulary_;
    EngineOptions                                     options_;
    KvCache                                           cache_;
    std::unique_ptr<CpuForward>                       forward_;  // null where graphs are computed
    std::unique_ptr<GpuSlots>                         gpu_slots_;
    SlotImages                                        slots_;
    std::unordered_map<int, std::unique_ptr<Sampler>> samplers_;
    int                                               next_sampler_ = 1;
    std::list<std::unique_ptr<Graph>>                 graphs_;  // most recently used first
    std::vector<int32_t>                              row_cells_;
    std::vector<float>                                results_;  // copied from a device
};

}  // namespace mf
