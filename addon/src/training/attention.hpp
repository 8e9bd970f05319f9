// Causal attention over examples that lie one after another in one array of rows, and its gradient.
#pragma once

#include "../model.hpp"
#include "../team.hpp"

namespace mf {

struct AttentionShape {
    const int32_t * starts;  // [examples + 1]
    int             examples;
    int             heads;
    int             kv_heads;
    int             head_dim;
    int             window;  // 0: none
    float           scale;
    // Trained keys and values before everybody's own [prefix][kv_heads * head_dim], or none.
    const float * prefix_k = nullptr;
    const float * prefix_v = nullptr;
    int           prefix   = 0;

    int         q_width() const { return heads * head_dim; }
    int         kv_width() const { return kv_heads * head_dim; }
    std::size_t qkv_width() const { return static_cast<std::size_t>(q_width()) + 2 * kv_width(); }
};

// qkv [rows][q | k | v] after RoPE → out [rows][q_width], lse [rows][heads] (log of the sum of exponentials, for the way back).
void attention_forward(Session & session, const AttentionShape & shape, const float * qkv, float * out, float * lse,
                       Floats & scratch);

// d_out → d_qkv (overwritten), and the prefix's gradients (added to), if there is one.
void attention_backward(Session & session, const AttentionShape & shape, const float * qkv, const float * out, const float * lse,
                        const float * d_out, float * d_qkv, float * d_prefix_k, float * d_prefix_v, Floats & scratch);

// Most floats of scratch that either takes with up to `rows` rows; of the shape only the widths and the prefix matter.
std::size_t attention_floats(const AttentionShape & shape, int rows, int threads);

}  // namespace mf
