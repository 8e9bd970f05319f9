#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "kernels/kernels.hpp"

namespace mf {

// Graphs of small steps are kept: decoding repeats the same shapes, and building one costs as much as a small model's step.
static constexpr std::size_t GRAPHS_KEPT     = 24;
static constexpr int         GRAPH_ROWS_KEPT = 64;
static constexpr std::size_t GRAPH_RUNS_KEPT = 8;
static constexpr int         CELLS_STEP      = 256;

Engine::Engine(std::shared_ptr<Model> model, std::shared_ptr<const Vocabulary> vocabulary, const EngineOptions & options)
    : model_(std::move(model)),
      vocabulary_(std::move(vocabulary)),
      options_(options),
      cache_(*model_, options.kv_cells, options.sequences_max, options.kv_f32 ? GGML_TYPE_F32 : GGML_TYPE_F16),
      slots_(options.slots) {
    const auto & h = model_->h();
    require(vocabulary_->size() <= h.vocabulary, "model_invalid",
            "the tokenizer has " + std::to_string(vocabulary_->size()) + " tokens, but the model has logits for only " +
                std::to_string(h.vocabulary));
    if (model_->fused()) {
        forward_ = std::make_unique<CpuForward>(*model_, cache_);
    } else if (options.slots > 0 && !model_->exact_adapters()) {
        gpu_slots_ = std::make_unique<GpuSlots>(*model_, options.slots, options.slot_rank_max);
    }
}

void Engine::check_sequence(int sequence) const {
    require(sequence >= 0 && sequence < cache_.sequences(), "argument_invalid",
            "there is no sequence " + std::to_string(sequence));
}

void Engine::set_slot(int slot, std::shared_ptr<const AdapterImage> image) {
    require(slot >= 0 && slot < static_cast<int>(slots_.size()), "argument_invalid",
            "there is no adapter slot " + std::to_string(slot));
    require(image->fits(*model_), "adapter_invalid", "the adapter was built for a model of another shape");
    require(image->rank_max() <= options_.slot_rank_max, "adapter_invalid",
            "the adapter's rank " + std::to_string(image->rank_max()) + " is above the slots' highest, " +
                std::to_string(options_.slot_rank_max));
    if (gpu_slots_ != nullptr) {
        gpu_slots_->set(slot, *image);
    }
    forget_graphs_of(slot);
    slots_[slot] = std::move(image);
}

// In exact mode a graph refers to the very weights of its adapters.
void Engine::forget_graphs_of(int slot) {
    graphs_.remove_if([&](const std::unique_ptr<Graph> & g) {
        const auto & runs = g->shape().runs;
        return std::any_of(runs.begin(), runs.end(), [&](const Run & run) { return run.slot == slot; });
    });
}

void Engine::clear_slot(int slot) {
    require(slot >= 0 && slot < static_cast<int>(slots_.size()), "argument_invalid",
            "there is no adapter slot " + std::to_string(slot));
    forget_graphs_of(slot);
    slots_[slot] = nullptr;
}

void Engine::trim_sequence(int sequence, int length) {
    check_sequence(sequence);
    require(length >= 0, "argument_invalid", "a sequence cannot have a negative length");
    cache_.trim(sequence, length);
}

void Engine::share_sequence(int source, int destination, int length) {
    check_sequence(source);
    check_sequence(destination);
    require(source != destination && cache_.length(destination) == 0 && length >= 0 && length <= cache_.length(source),
            "argument_invalid", "a prefix can be shared only with an empty sequence, and no longer than it is");
    cache_.share(source, destination, length);
}

int Engine::sequence_length(int sequence) const {
    check_sequence(sequence);
    return cache_.length(sequence);
}

void Engine::load_prefix(int sequence, const std::vector<const float *> & keys, const std::vector<const float *> & values,
                         int length) {
    check_sequence(sequence);
    require(cache_.length(sequence) == 0, "argument_invalid", "a prefix goes into an empty sequence");
    require(length <= cache_.cells_free(), "kv_full", "the key/value cache has not enough free cells for the prefix");
    require(static_cast<int>(keys.size()) == model_->h().layers, "argument_invalid", "a prefix has keys for every layer");
    const int             width = model_->h().kv_width();
    std::vector<uint16_t> half(width);
    for (int position = 0; position < length; ++position) {
        const int32_t cell = cache_.append(sequence);
        for (int layer = 0; layer < model_->h().layers; ++layer) {
            for (const bool key : { true, false }) {
                ggml_tensor *     cache = key ? cache_.k(layer) : cache_.v(layer);
                const float *     row   = (key ? keys : values)[layer] + static_cast<std::size_t>(position) * width;
                const std::size_t size  = ggml_row_size(cache->type, width);
                if (cache->type == GGML_TYPE_F16) {
                    kernels().to_half(row, width, half.data());
                }
                ggml_backend_tensor_set(cache, cache->type == GGML_TYPE_F16 ? static_cast<const void *>(half.data()) : row,
                                        cell * size, size);
            }
        }
    }
}

int Engine::create_sampler(SamplerOptions options) {
    const int id  = next_sampler_++;
    samplers_[id] = std::make_unique<Sampler>(vocabulary_, std::move(options));
    return id;
}

void Engine::accept_tokens(int sampler, const int32_t * tokens, std::size_t count) {
    const auto found = samplers_.find(sampler);
    require(found != samplers_.end(), "argument_invalid", "there is no sampler " + std::to_string(sampler));
    for (std::size_t i = 0; i < count; ++i) {
        require(tokens[i] >= 0 && tokens[i] < vocabulary_->size(), "argument_invalid",
                "there is no token " + std::to_string(tokens[i]));
    }
    found->second->accept_prompt(tokens, count);
}

void Engine::free_sampler(int sampler) { samplers_.erase(sampler); }

void Engine::check(const StepBatch & b) const {
    require(b.rows > 0 && b.rows <= options_.batch_tokens_max, "argument_invalid",
            "a step takes 1 to " + std::to_string(options_.batch_tokens_max) + " rows");
    require(b.rows <= cache_.cells_free(), "kv_full",
            "the key/value cache has " + std::to_string(cache_.cells_free()) + " free cells, the step needs " +
                std::to_string(b.rows));
    std::unordered_map<int32_t, int> lengths;
    for (int row = 0; row < b.rows; ++row) {
        const char * wrong = nullptr;
        if (b.tokens[row] < 0 || b.tokens[row] >= model_->h().vocabulary) {
            wrong = "there is no such token";
        } else if (b.sequences[row] < 0 || b.sequences[row] >= cache_.sequences()) {
            wrong = "there is no such sequence";
        } else if (b.slots[row] < -1 || b.slots[row] >= static_cast<int>(slots_.size()) ||
                   (b.slots[row] >= 0 && slots_[b.slots[row]] == nullptr)) {
            wrong = "its adapter slot is empty or does not exist";
        } else {
            auto [length, fresh] = lengths.try_emplace(b.sequences[row], cache_.length(b.sequences[row]));
            if (b.positions[row] != length->second++) {
                wrong = "its position does not follow what the sequence holds";
            }
        }
        if (wrong != nullptr) {
            throw Error("argument_invalid", "row " + std::to_string(row) + " of the step: " + wrong);
        }
    }
    for (int i = 0; i < b.output_count; ++i) {
        require(b.outputs[i] >= 0 && b.outputs[i] < b.rows && (i == 0 || b.outputs[i] > b.outputs[i - 1]), "argument_invalid",
                "output rows must be rising and within the batch");
        require(b.samplers[i] < 0 || samplers_.count(b.samplers[i]) > 0, "argument_invalid",
                "there is no sampler " + std::to_string(b.samplers[i]));
        require(b.targets == nullptr || (b.targets[i] >= -1 && b.targets[i] < model_->h().vocabulary), "argument_invalid",
                "there is no token " + std::to_string(b.targets == nullptr ? 0 : b.targets[i]) + " that could be a target");
    }
}

// Under the model's own distribution over all its logits, as training's loss sees it.
static void rate_targets(const int32_t * targets, int count, const float * logits, int width, StepResult & result) {
    const Kernels & k = kernels();
    result.target_logprobs.assign(count, 0.0F);
    result.target_hits.assign(count, 0);
    for (int i = 0; i < count; ++i) {
        if (targets[i] < 0) {
            continue;
        }
        const float * row         = logits + static_cast<std::size_t>(i) * width;
        float         best        = 0;
        const int     likeliest   = k.argmax(row, width, &best);
        result.target_logprobs[i] = static_cast<float>(row[targets[i]] - best - std::log(k.exp_sum(row, width, best, 1.0F)));
        result.target_hits[i]     = likeliest == targets[i] ? 1 : 0;
    }
}

void Engine::take_cells(const StepBatch & b) {
    row_cells_.resize(b.rows);
    for (int row = 0; row < b.rows; ++row) {
        row_cells_[row] = cache_.append(b.sequences[row]);
    }
}

Graph & Engine::graph_for(const GraphShape & shape) {
    for (auto it = graphs_.begin(); it != graphs_.end(); ++it) {
        if ((*it)->shape() == shape) {
            graphs_.splice(graphs_.begin(), graphs_, it);
            return *graphs_.front();
        }
    }
    // Large graphs hold large buffers: at most one of them stays.
    graphs_.remove_if([&](const std::unique_ptr<Graph> & g) {
        return g->shape().rows > GRAPH_ROWS_KEPT || g->shape().runs.size() > GRAPH_RUNS_KEPT;
    });
    if (graphs_.size() >= GRAPHS_KEPT) {
        graphs_.pop_back();
    }
    graphs_.push_front(std::make_unique<Graph>(*model_, cache_, gpu_slots_.get(), slots_, shape));
    return *graphs_.front();
}

void Engine::fill_mask(ggml_tensor * mask, const StepBatch & b, int window) const {
    if (mask == nullptr) {
        return;
    }
    const int64_t         width = mask->ne[0];
    std::vector<uint16_t> values(static_cast<std::size_t>(width) * b.rows, 0xfc00U);  // -inf
    for (int row = 0; row < b.rows; ++row) {
        const auto & cells = cache_.cells_of(b.sequences[row]);
        const int    last  = b.positions[row];
        for (int p = window > 0 ? std::max(0, last - window + 1) : 0; p <= last; ++p) {
            values[row * width + cells[p]] = 0;
        }
    }
    ggml_backend_tensor_set(mask, values.data(), 0, values.size() * sizeof(uint16_t));
}

void Engine::set_inputs(const Graph & graph, const StepBatch & b) {
    const auto set = [](ggml_tensor * t, const void * data) {
        if (t != nullptr && t->buffer != nullptr) {
            ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t));
        }
    };
    set(graph.tokens, b.tokens);
    set(graph.positions, b.positions);
    const std::vector<int64_t> cells(row_cells_.begin(), row_cells_.end());
    set(graph.cells, cells.data());
    set(graph.output_rows, b.outputs);
    fill_mask(graph.mask, b, 0);
    fill_mask(graph.mask_local, b, model_->h().window);
    if (graph.slots != nullptr) {
        std::vector<int32_t> ids(b.rows);
        for (int row = 0; row < b.rows; ++row) {
            ids[row] = b.slots[row] >= 0 ? b.slots[row] : gpu_slots_->zero_slot();
        }
        set(graph.slots, ids.data());
        if (graph.output_slots != graph.slots) {
            std::vector<int32_t> of_outputs(b.output_count);
            for (int i = 0; i < b.output_count; ++i) {
                of_outputs[i] = ids[b.outputs[i]];
            }
            set(graph.output_slots, of_outputs.data());
        }
    }
}

StepResult Engine::step(const StepBatch & b) {
    check(b);
    try {
        return compute(b);
    } catch (...) {
        // The caller never learns of this step's positions, so the cache must not hold them.
        for (int row = b.rows - 1; row >= 0; --row) {
            cache_.trim(b.sequences[row], b.positions[row]);
        }
        throw;
    }
}

float * Engine::compute_on_cpu(const StepBatch & b, int & width) {
    std::vector<const AdapterImage *> images(b.rows);
    for (int row = 0; row < b.rows; ++row) {
        images[row] = b.slots[row] >= 0 ? slots_[b.slots[row]].get() : nullptr;
    }
    width = b.want_hidden ? model_->h().embedding : model_->h().vocabulary;
    const ServingLease lease;
    Session            session(Team::of(model_->backend().threads()));
    return forward_->run(
        session, { b.rows, b.tokens, b.positions, b.sequences, row_cells_.data(), b.outputs, b.output_count, b.want_hidden },
        images);
}

// Rows without an adapter are in no run.
template <typename F> static std::vector<Run> runs_of(int rows, F && slot_of) {
    std::vector<Run> runs;
    for (int row = 0; row < rows; ++row) {
        const int slot = slot_of(row);
        if (slot < 0) {
            continue;
        }
        if (!runs.empty() && runs.back().slot == slot && runs.back().first + runs.back().count == row) {
            ++runs.back().count;
        } else {
            runs.push_back({ slot, row, 1 });
        }
    }
    return runs;
}

float * Engine::compute_graph(const StepBatch & b, int & width) {
    GraphShape shape;
    shape.rows    = b.rows;
    shape.outputs = b.output_count;
    shape.hidden  = b.want_hidden;
    if (model_->exact_adapters()) {
        shape.runs = runs_of(b.rows, [&](int row) { return b.slots[row]; });
        if (b.output_count < b.rows) {
            shape.output_runs = runs_of(b.output_count, [&](int output) { return b.slots[b.outputs[output]]; });
        }
    } else {
        shape.lora = std::any_of(b.slots, b.slots + b.rows, [](int32_t slot) { return slot >= 0; });
    }
    const int high      = cache_.cells_high();
    shape.cells         = std::min((high + CELLS_STEP - 1) / CELLS_STEP * CELLS_STEP, cache_.cells());
    const Graph & graph = graph_for(shape);
    set_inputs(graph, b);
    model_->backend().compute(graph.graph());
    if (b.output_count == 0) {
        return nullptr;
    }
    width = static_cast<int>(graph.result->ne[0]);
    if (ggml_backend_buffer_is_host(graph.result->buffer)) {
        return static_cast<float *>(graph.result->data);
    }
    results_.resize(static_cast<std::size_t>(width) * b.output_count);
    ggml_backend_tensor_get(graph.result, results_.data(), 0, results_.size() * sizeof(float));
    return results_.data();
}

StepResult Engine::compute(const StepBatch & b) {
    const auto started = std::chrono::steady_clock::now();

    take_cells(b);
    int        width  = 0;
    float *    values = forward_ != nullptr ? compute_on_cpu(b, width) : compute_graph(b, width);
    StepResult result;
    result.choices.resize(b.output_count);
    if (b.output_count > 0) {
        if (b.want_logits || b.want_hidden) {
            result.values.assign(values, values + static_cast<std::size_t>(width) * b.output_count);
        }
        if (b.targets != nullptr && !b.want_hidden) {
            // Before sampling, which may change logits (biases, penalties).
            rate_targets(b.targets, b.output_count, values, width, result);
        }
        if (!b.want_hidden) {
            for (int i = 0; i < b.output_count; ++i) {
                if (b.samplers[i] < 0) {
                    continue;
                }
                try {
                    result.choices[i] = samplers_.at(b.samplers[i])->sample(values + static_cast<std::size_t>(i) * width);
                } catch (const std::exception & e) {
                    result.choices[i]       = Choice();
                    result.choices[i].error = e.what();
                }
            }
        }
    }
    result.compute_micros =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - started).count();
    return result;
}

}  // namespace mf
