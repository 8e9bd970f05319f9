// The inner loops that ggml does not have: low-rank deltas, block-sum corrections, attention over scattered cells.
// One source (kernels_impl.hpp) is compiled once per instruction set; `kernels()` picks the best the processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mf {

// Attention of a block of rows of one sequence for one key/value head.
struct AttentionBlock {
    const float *   q;  // [rows][heads][head_dim], after RoPE; row stride q_stride floats
    std::size_t     q_stride;
    float *         out;  // same shape as q; row stride out_stride floats
    std::size_t     out_stride;
    const void *    k;  // cache of this layer: [cells][kv_heads * head_dim], f16 or f32
    const void *    v;
    bool            cache_f32;
    std::size_t     cell_stride;  // kv_heads * head_dim
    const int32_t * cells;        // cell of every position of the sequence
    const int32_t * positions;    // [rows] position of each row, rising
    int             rows;
    int             head_first;  // first query head of this key/value head
    int             group;       // query heads per key/value head
    int             kv_head;
    int             head_dim;
    int             window;  // sliding window in tokens, 0 = none
    float           scale;
};

// Activations rounded to 8 bits in blocks of 32, as ggml's Q8_0: x ≈ scale · q.
struct QuantizedRows {
    const int8_t *  q;      // [rows][in]
    const float *   scale;  // [rows][in / 32], float16 values
    const float *   sum;    // [rows][in / 32]: scale · Σ q
    const int32_t * count;  // [rows][in / 32]: Σ q
    int             in;
};

// A quantised matrix with 16 output rows interleaved: per group of 16 rows and block of 32 inputs one record of
//   quants  4 bit: 4 × 64 bytes, vector j holds inputs 4j..4j+3 of each row in the low nibbles, 16+4j.. in the high ones
//           8 bit: 8 × 64 bytes, vector j holds inputs 4j..4j+3 of each row, stored with 128 added
//   scale   16 × float16
//   offset  16 × float16, if `has_offset`
// so that w = scale · (quant - zero) + offset.
struct PackedMatrix {
    const uint8_t * data       = nullptr;
    int             in         = 0;
    int             out        = 0;  // a multiple of 16
    int             bits       = 0;
    int             zero       = 0;
    bool            has_offset = false;
    std::size_t     record_bytes() const { return (bits == 4 ? 256U : 512U) + 32U + (has_offset ? 32U : 0U); }
    std::size_t     group_bytes() const { return record_bytes() * (in / 32); }
};
inline constexpr int PACKED_ROWS = 16;

struct Kernels {
    const char * name;

    // Both null where the instruction set has no 8-bit dot product; ggml's own products are used then.
    void (*quantize)(const float * x, int in, int8_t * q, float * scale, float * sum, int32_t * count);
    // y[t][o] = sum_i w[o][i] x[t][i] for the 16-row groups [group0, group1).
    void (*packed_product)(const PackedMatrix & w, int group0, int group1, const QuantizedRows & x, int rows, float * y,
                           std::size_t y_stride);

    // u[t][r] = sum_i x[t][i] * a[r][i] for r in [r0, r1); a is f16, row-major [rank][in].
    void (*lora_a)(const float * x, std::size_t x_stride, int rows, const uint16_t * a, int in, int r0, int r1, float * u,
                   std::size_t u_stride);

    // y[t][o] += sum_r u[t][r] * bt[r][o] for o in [o0, o1); bt is f16, [rank][out] (B transposed, scaled).
    void (*lora_b)(const float * u, std::size_t u_stride, int rows, const uint16_t * bt, int rank, int out, int o0, int o1,
                   float * y, std::size_t y_stride);

    // s[b] = sum of x[32 b .. 32 b + 31] as the quantised product sees x: rounded to 8 bits per block of 32, float16 scale.
    // With these sums a split weight gives w x̂ exactly; sums of the unrounded x would leave the offset's part of the
    // rounding error behind.
    void (*block_sums)(const float * x, int in, float * s);

    // scratch: at least attention_scratch_floats(head_dim, group * rows) floats
    void (*attention)(const AttentionBlock & block, float * scratch);

    // x as float16, to nearest even.
    void (*to_half)(const float * x, std::size_t n, uint16_t * half);

    // Largest element (first one on ties) and its index.
    int (*argmax)(const float * x, int n, float * max);

    // sum_i exp((x[i] - max) * inv_temperature)
    double (*exp_sum)(const float * x, int n, float max, float inv_temperature);

    // Float32: training, and the offset part of Q4_1 weights. Each element is summed by one caller in one order, whatever the
    // number of rows.
    //
    // y[t][n] += sum_k u[t][k] b[k][n] for n in [n0, n1)
    void (*gemm_nn)(const float * u, std::size_t u_stride, int rows, const float * b, std::size_t b_stride, int inner, int n0,
                    int n1, float * y, std::size_t y_stride);
    // u[t][r] = scale * sum_n x[t][n] a[r][n]
    void (*gemm_nt)(const float * x, std::size_t x_stride, int rows, const float * a, std::size_t a_stride, int width, int ranks,
                    float scale, float * u, std::size_t u_stride);
    // g[r][n] += sum_t u[t][r] x[t][n] for n in [n0, n1)
    void (*gemm_tn)(const float * u, std::size_t u_stride, const float * x, std::size_t x_stride, int rows, int ranks, int n0,
                    int n1, float * g, std::size_t g_stride);
    // h = act(g) * u, and its two derivatives; act is SiLU, or GELU in its tanh form.
    void (*gate)(const float * g, const float * u, int n, bool gelu, float * h);
    void (*gate_back)(const float * g, const float * u, const float * dh, int n, bool gelu, float * dg, float * du);
    // x[i] = factor * exp(x[i] - top)
    void (*scaled_exp)(float * x, int n, float top, float factor);
    float (*dot)(const float * x, const float * y, int n);
    // y += k x
    void (*add_scaled)(const float * x, float k, int n, float * y);
};

inline constexpr int ATTENTION_ROWS_MAX = 8;
inline constexpr int ATTENTION_TILE     = 32;

inline std::size_t attention_scratch_floats(int head_dim, int queries) {
    return static_cast<std::size_t>(2 * ATTENTION_TILE * head_dim + queries * (head_dim + ATTENTION_TILE + 2) + 64);
}

const Kernels & kernels();

}  // namespace mf
