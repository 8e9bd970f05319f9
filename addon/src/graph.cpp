#include "graph.hpp"

#include <cmath>

#include "error.hpp"

namespace mf {

// Of one run and target: two views, two products, one scaling and one addition.
static constexpr std::size_t NODES_PER_RUN = TARGET_COUNT * 6;

Graph::Graph(const Model & model, const KvCache & cache, const GpuSlots * slots, const SlotImages & images,
             const GraphShape & shape)
    : model_(model), h_(model.h()), cache_(cache), slots_(slots), images_(images), shape_(shape) {
    const std::size_t      nodes  = 128 + h_.layers * (96 + NODES_PER_RUN * shape.runs.size());
    const ggml_init_params params = { ggml_tensor_overhead() * nodes * 2 + ggml_graph_overhead_custom(nodes, false), nullptr,
                                      true };
    ctx_                          = ggml_init(params);
    graph_                        = ggml_new_graph_custom(ctx_, nodes, false);
    build();
    allocator_ = ggml_gallocr_new(model.backend().buffer_type());
    try {
        allocate();
    } catch (...) {
        ggml_gallocr_free(allocator_);
        ggml_free(ctx_);
        throw;
    }
}

void Graph::allocate() {
    require(ggml_gallocr_alloc_graph(allocator_, graph_), "out_of_memory",
            "a step of " + std::to_string(shape_.rows) + " rows does not fit into memory");
    for (int i = 0; i < ggml_graph_n_nodes(graph_); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph_, i);
        require(ggml_backend_supports_op(model_.backend().handle(), node), "architecture_unsupported",
                model_.backend().device().name + " cannot compute " + ggml_op_desc(node) +
                    " for this model; use MODELFACTORY_DEVICE=cpu");
    }
}

Graph::~Graph() {
    ggml_gallocr_free(allocator_);
    ggml_free(ctx_);
}

ggml_tensor * Graph::input(ggml_type type, int64_t n0, int64_t n1, const char * name) {
    ggml_tensor * t = n1 > 0 ? ggml_new_tensor_2d(ctx_, type, n0, n1) : ggml_new_tensor_1d(ctx_, type, n0);
    ggml_set_input(t);
    ggml_set_name(t, name);
    return t;
}

ggml_tensor * Graph::norm(ggml_tensor * x, ggml_tensor * weight) {
    return ggml_mul(ctx_, ggml_rms_norm(ctx_, x, h_.norm_epsilon), weight);
}

// GPUs: two gathered products per target, over the stacked slots.
ggml_tensor * Graph::delta(ggml_tensor * x, int layer, Target target, bool outputs) {
    ggml_tensor * ids = outputs ? output_slots : slots;
    ggml_tensor * x3  = ggml_reshape_3d(ctx_, x, x->ne[0], 1, x->ne[1]);
    ggml_tensor * u   = ggml_mul_mat_id(ctx_, slots_->a(layer, target), x3, ids);
    ggml_tensor * y   = ggml_mul_mat_id(ctx_, slots_->b(layer, target), u, ids);
    return ggml_reshape_2d(ctx_, y, y->ne[0], y->ne[2]);
}

// Exact mode: libllama's operations in libllama's order (build_lora_mm in its llama-graph.cpp), for each run of rows. A step
// whose rows all have the same adapter is libllama's own; else the products see the run's rows alone.
ggml_tensor * Graph::adapted(ggml_tensor * y, ggml_tensor * x, int layer, Target target, bool outputs) {
    for (const Run & run : outputs ? shape_.output_runs : shape_.runs) {
        const ExactAdapter::Pair & pair = images_[run.slot]->exact()->pair(layer, target);
        if (pair.a == nullptr) {
            continue;
        }
        const bool    all   = run.count == x->ne[1];
        ggml_tensor * rows  = all ? x : ggml_view_2d(ctx_, x, x->ne[0], run.count, x->nb[1], run.first * x->nb[1]);
        ggml_tensor * delta = ggml_scale(ctx_, ggml_mul_mat(ctx_, pair.b, ggml_mul_mat(ctx_, pair.a, rows)), pair.scale);
        // Other rows keep their bytes: adding zeros would turn a negative zero into a positive one.
        y = all ? ggml_add(ctx_, y, delta) : ggml_acc_inplace(ctx_, y, delta, y->nb[1], y->nb[2], y->nb[3], run.first * y->nb[1]);
    }
    return y;
}

// x [in, rows] through every target of a site, adapters and biases included; one tensor per target.
Graph::Outputs Graph::linear(ggml_tensor * x, int layer, SiteId id, bool outputs) {
    Outputs y = {};
    for (const auto & part : model_.layers[layer].sites[id].parts) {
        ggml_tensor * result = ggml_mul_mat(ctx_, part.weight, x);
        // Only the fused path stacks targets.
        const Target target = part.spans[0].target;
        if (shape_.lora) {
            result = ggml_add(ctx_, result, delta(x, layer, target, outputs));
        }
        result = adapted(result, x, layer, target, outputs);
        if (part.bias != nullptr) {
            result = ggml_add(ctx_, result, part.bias);
        }
        y.of[place_of(target).index] = result;
    }
    return y;
}

ggml_tensor * Graph::attend(ggml_tensor * x, int layer) {
    const Layer & w    = model_.layers[layer];
    const int64_t rows = shape_.rows;
    const Outputs qkv  = linear(x, layer, SITE_QKV, false);
    const auto    head = [&](ggml_tensor * t, int count) {
        return ggml_view_3d(ctx_, t, h_.head_dim, count, rows, h_.head_dim * sizeof(float), t->nb[1], 0);
    };
    const bool  local = h_.local[layer];
    const float base  = local ? h_.rope_base_local : h_.rope_base;
    const float scale = local ? 1.0F : h_.rope_scale;
    const auto  turn  = [&](ggml_tensor * t, ggml_tensor * norm_weight) {
        if (norm_weight != nullptr) {
            t = norm(ggml_cont(ctx_, t), norm_weight);
        }
        return ggml_rope_ext(ctx_, t, positions, model_.rope_factors, h_.rope_dimensions, h_.rope_mode, h_.context_trained, base,
                               scale, 0.0F, 1.0F, 32.0F, 1.0F);
    };
    ggml_tensor * q        = turn(head(qkv.of[0], h_.heads), w.q_norm);
    ggml_tensor * k        = turn(head(qkv.of[1], h_.kv_heads), w.k_norm);
    ggml_tensor * v        = qkv.of[2];
    ggml_tensor * k_stored = ggml_set_rows(ctx_, cache_.k(layer), ggml_reshape_2d(ctx_, k, h_.kv_width(), rows), cells);
    ggml_tensor * v_stored = ggml_set_rows(ctx_, cache_.v(layer), v, cells);
    expand(k_stored);
    expand(v_stored);
    const auto cached = [&](ggml_tensor * t) {
        ggml_tensor * view =
            ggml_view_3d(ctx_, t, h_.head_dim, h_.kv_heads, shape_.cells, h_.head_dim * ggml_type_size(t->type), t->nb[1], 0);
        return ggml_permute(ctx_, view, 0, 2, 1, 3);
    };
    if (h_.scales_queries) {
        q = ggml_scale(ctx_, q, h_.attention_scale);
    }
    ggml_tensor * out =
        ggml_flash_attn_ext(ctx_, ggml_permute(ctx_, q, 0, 2, 1, 3), cached(cache_.k(layer)), cached(cache_.v(layer)),
                            local ? mask_local : mask, h_.scales_queries ? 1.0F : h_.attention_scale, 0.0F, 0.0F);
    return ggml_reshape_2d(ctx_, out, h_.q_width(), rows);
}

ggml_tensor * Graph::feed_forward(ggml_tensor * x, int layer, bool outputs) {
    const Outputs y = linear(x, layer, SITE_GATE_UP, outputs);
    ggml_tensor * gated =
        h_.activation == Activation::silu ? ggml_swiglu_split(ctx_, y.of[0], y.of[1]) : ggml_geglu_split(ctx_, y.of[0], y.of[1]);
    return linear(gated, layer, SITE_DOWN, outputs).of[0];
}

void Graph::build() {
    const bool narrow = shape_.outputs > 0 && shape_.outputs < shape_.rows;
    tokens            = input(GGML_TYPE_I32, shape_.rows, 0, "tokens");
    positions         = input(GGML_TYPE_I32, shape_.rows, 0, "positions");
    cells             = input(GGML_TYPE_I64, shape_.rows, 0, "cells");
    if (narrow) {
        output_rows = input(GGML_TYPE_I32, shape_.outputs, 0, "output_rows");
    }
    mask = input(GGML_TYPE_F16, shape_.cells, shape_.rows, "mask");
    if (h_.window > 0) {
        mask_local = input(GGML_TYPE_F16, shape_.cells, shape_.rows, "mask_local");
    }
    if (shape_.lora) {
        slots        = input(GGML_TYPE_I32, 1, shape_.rows, "slots");
        output_slots = narrow ? input(GGML_TYPE_I32, 1, shape_.outputs, "output_slots") : slots;
    }
    ggml_tensor * x = ggml_get_rows(ctx_, model_.token_embedding, tokens);
    if (h_.embedding_scale != 1.0F) {
        x = ggml_scale(ctx_, x, h_.embedding_scale);
    }
    for (int layer = 0; layer < h_.layers; ++layer) {
        const Layer & w        = model_.layers[layer];
        const bool    last     = layer == h_.layers - 1;
        ggml_tensor * attended = attend(norm(x, w.attn_norm), layer);
        if (last && shape_.outputs == 0) {
            return;  // the cache is filled, and nobody asked for more
        }
        const bool outputs = last && narrow;
        if (outputs) {
            attended = ggml_get_rows(ctx_, attended, output_rows);
            x        = ggml_get_rows(ctx_, x, output_rows);
        }
        ggml_tensor * mixed = linear(attended, layer, SITE_ATTN_OUTPUT, outputs).of[0];
        if (w.attn_post_norm != nullptr) {
            mixed = norm(mixed, w.attn_post_norm);
        }
        x                  = ggml_add(ctx_, mixed, x);
        ggml_tensor * made = feed_forward(norm(x, w.ffn_norm), layer, outputs);
        if (w.ffn_post_norm != nullptr) {
            made = norm(made, w.ffn_post_norm);
        }
        x = ggml_add(ctx_, made, x);
    }
    x = norm(x, model_.output_norm);
    if (!shape_.hidden) {
        x = ggml_mul_mat(ctx_, model_.output, x);
        if (h_.final_softcap > 0.0F) {
            x = ggml_scale(ctx_, ggml_tanh(ctx_, ggml_scale(ctx_, x, 1.0F / h_.final_softcap)), h_.final_softcap);
        }
    }
    result = x;
    ggml_set_output(result);
    expand(result);
}

}  // namespace mf
