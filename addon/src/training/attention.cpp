#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../kernels/kernels.hpp"

namespace mf {

// Queries taken at a time: their scores against all keys stay in the cache (FlashAttention's recomputation on the way back,
// Dao et al. 2022, with whole rows instead of tiles, since examples are short).
static constexpr int QUERIES = 32;

int AttentionShape::longest() const {
    int longest = 0;
    for (int e = 0; e < examples; ++e) {
        longest = std::max(longest, starts[e + 1] - starts[e]);
    }
    return longest;
}

namespace {

// Keys and values of one example and one key/value head.
struct Keys {
    const AttentionShape & s;
    const float *          k;  // own rows, stride qkv_width
    const float *          v;
    const float *          pk;  // prefix rows, stride kv_width
    const float *          pv;
    int                    length;  // own
    int                    total() const { return s.prefix + length; }
};

Keys keys_of(const AttentionShape & s, const float * qkv, int example, int kv_head) {
    const float * row = qkv + s.starts[example] * s.qkv_width();
    const int     at  = kv_head * s.head_dim;
    return { s,
             row + s.q_width() + at,
             row + s.q_width() + s.kv_width() + at,
             s.prefix > 0 ? s.prefix_k + at : nullptr,
             s.prefix > 0 ? s.prefix_v + at : nullptr,
             s.starts[example + 1] - s.starts[example] };
}

// [head_dim][stride]: rows of keys or values turned, prefix first.
void turn(const Keys & keys, const float * prefix, const float * own, float * to, int stride) {
    const int         d      = keys.s.head_dim;
    const std::size_t p_step = keys.s.kv_width();
    const std::size_t step   = keys.s.qkv_width();
    for (int j = 0; j < keys.total(); ++j) {
        const float * row = j < keys.s.prefix ? prefix + j * p_step : own + (j - keys.s.prefix) * step;
        for (int i = 0; i < d; ++i) {
            to[static_cast<std::size_t>(i) * stride + j] = row[i];
        }
    }
}

// First and one past the last key that query `i` of the example sees.
int first_key(const AttentionShape & s, int i) { return s.window > 0 ? std::max(0, s.prefix + i - s.window + 1) : 0; }
int last_key(const AttentionShape & s, int i) { return s.prefix + i + 1; }

// y += p · (prefix rows, own rows)
void times_rows(const Keys & keys, const float * p, std::size_t p_stride, int queries, int seen, const float * prefix,
                const float * own, float * y, std::size_t y_stride) {
    const auto & k        = kernels();
    const int    d        = keys.s.head_dim;
    const int    prefixed = std::min(seen, keys.s.prefix);
    if (prefixed > 0) {
        k.gemm_nn(p, p_stride, queries, prefix, keys.s.kv_width(), prefixed, 0, d, y, y_stride);
    }
    if (seen > keys.s.prefix) {
        k.gemm_nn(p + keys.s.prefix, p_stride, queries, own, keys.s.qkv_width(), seen - keys.s.prefix, 0, d, y, y_stride);
    }
}

int padded(int n) { return (n + 15) / 16 * 16; }

}  // namespace

void attention_forward(Session & session, const AttentionShape & s, const float * qkv, float * out, float * lse, Floats & scratch) {
    const int         stride = padded(s.prefix + s.longest());
    const std::size_t each   = static_cast<std::size_t>(stride) * (s.head_dim + QUERIES);
    const int         group  = s.heads / s.kv_heads;
    scratch.resize(each * session.threads());
    session.items(s.examples * s.kv_heads, [&](int item, int thread) {
        const auto & k       = kernels();
        const int    example = item / s.kv_heads;
        const int    kv_head = item % s.kv_heads;
        const Keys   keys    = keys_of(s, qkv, example, kv_head);
        float *      kt      = scratch.data() + thread * each;
        float *      p       = kt + static_cast<std::size_t>(stride) * s.head_dim;
        turn(keys, keys.pk, keys.k, kt, stride);
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            for (int i0 = 0; i0 < keys.length; i0 += QUERIES) {
                const int     queries = std::min(QUERIES, keys.length - i0);
                const int     seen    = last_key(s, i0 + queries - 1);
                const auto    row     = static_cast<std::size_t>(s.starts[example]) + i0;
                const float * q       = qkv + row * s.qkv_width() + head * s.head_dim;
                std::memset(p, 0, sizeof(float) * stride * queries);
                k.gemm_nn(q, s.qkv_width(), queries, kt, stride, s.head_dim, 0, seen, p, stride);
                for (int i = 0; i < queries; ++i) {
                    float *   scores = p + static_cast<std::size_t>(i) * stride;
                    const int from   = first_key(s, i0 + i);
                    const int to     = last_key(s, i0 + i);
                    for (int j = from; j < to; ++j) {
                        scores[j] *= s.scale;
                    }
                    const float top   = *std::max_element(scores + from, scores + to);
                    const auto  total = static_cast<float>(k.exp_sum(scores + from, to - from, top, 1.0F));
                    k.scaled_exp(scores + from, to - from, top, 1.0F / total);
                    std::fill(scores, scores + from, 0.0F);
                    std::fill(scores + to, scores + seen, 0.0F);
                    lse[(row + i) * s.heads + head] = top + std::log(total);
                }
                float * y = out + row * s.q_width() + head * s.head_dim;
                for (int i = 0; i < queries; ++i) {
                    std::memset(y + static_cast<std::size_t>(i) * s.q_width(), 0, sizeof(float) * s.head_dim);
                }
                times_rows(keys, p, stride, queries, seen, keys.pv, keys.v, y, s.q_width());
            }
        }
    });
}

void attention_backward(Session & session, const AttentionShape & s, const float * qkv, const float * out, const float * lse,
                        const float * d_out, float * d_qkv, float * d_prefix_k, float * d_prefix_v, Floats & scratch) {
    const int         stride  = padded(s.prefix + s.longest());
    const std::size_t each    = static_cast<std::size_t>(stride) * (2 * s.head_dim + 2 * QUERIES);
    const int         group   = s.heads / s.kv_heads;
    const std::size_t partial = static_cast<std::size_t>(s.prefix) * s.kv_width();  // of one example
    scratch.resize(each * session.threads() + 2 * partial * s.examples);
    float * partials = scratch.data() + each * session.threads();
    session.items(s.examples * s.kv_heads, [&](int item, int thread) {
        const auto & k       = kernels();
        const int    d       = s.head_dim;
        const int    example = item / s.kv_heads;
        const int    kv_head = item % s.kv_heads;
        const Keys   keys    = keys_of(s, qkv, example, kv_head);
        float *      kt      = scratch.data() + thread * each;
        float *      vt      = kt + static_cast<std::size_t>(stride) * d;
        float *      p       = vt + static_cast<std::size_t>(stride) * d;
        float *      ds      = p + static_cast<std::size_t>(stride) * QUERIES;
        turn(keys, keys.pk, keys.k, kt, stride);
        turn(keys, keys.pv, keys.v, vt, stride);
        float *       rows = d_qkv + s.starts[example] * s.qkv_width();
        float *       dk   = rows + s.q_width() + kv_head * d;
        float *       dv   = dk + s.kv_width();
        float *       dpk  = partials + 2 * partial * example + kv_head * d;
        float *       dpv  = dpk + partial;
        for (int j = 0; j < keys.length; ++j) {
            std::memset(dk + j * s.qkv_width(), 0, sizeof(float) * d);
            std::memset(dv + j * s.qkv_width(), 0, sizeof(float) * d);
        }
        for (int j = 0; j < s.prefix; ++j) {
            std::memset(dpk + static_cast<std::size_t>(j) * s.kv_width(), 0, sizeof(float) * d);
            std::memset(dpv + static_cast<std::size_t>(j) * s.kv_width(), 0, sizeof(float) * d);
        }
        // rows of keys += uᵀ x
        const auto back = [&](const float * u, int seen, const float * x, std::size_t x_stride, int queries, float * prefix,
                              float * own) {
            const int prefixed = std::min(seen, s.prefix);
            if (prefixed > 0) {
                k.gemm_tn(u, stride, x, x_stride, queries, prefixed, 0, d, prefix, s.kv_width());
            }
            if (seen > s.prefix) {
                k.gemm_tn(u + s.prefix, stride, x, x_stride, queries, seen - s.prefix, 0, d, own, s.qkv_width());
            }
        };
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            for (int i0 = 0; i0 < keys.length; i0 += QUERIES) {
                const int     queries = std::min(QUERIES, keys.length - i0);
                const int     seen    = last_key(s, i0 + queries - 1);
                const auto    row     = static_cast<std::size_t>(s.starts[example]) + i0;
                const float * q       = qkv + row * s.qkv_width() + head * d;
                const float * y       = out + row * s.q_width() + head * d;
                const float * dy      = d_out + row * s.q_width() + head * d;
                std::memset(p, 0, sizeof(float) * stride * queries);
                std::memset(ds, 0, sizeof(float) * stride * queries);
                k.gemm_nn(q, s.qkv_width(), queries, kt, stride, d, 0, seen, p, stride);
                k.gemm_nn(dy, s.q_width(), queries, vt, stride, d, 0, seen, ds, stride);
                for (int i = 0; i < queries; ++i) {
                    float *     pi   = p + static_cast<std::size_t>(i) * stride;
                    float *     di   = ds + static_cast<std::size_t>(i) * stride;
                    const int   from = first_key(s, i0 + i);
                    const int   to   = last_key(s, i0 + i);
                    const float mean = k.dot(dy + static_cast<std::size_t>(i) * s.q_width(),
                                             y + static_cast<std::size_t>(i) * s.q_width(), d);
                    const float log  = lse[(row + i) * s.heads + head];
                    for (int j = from; j < to; ++j) {
                        pi[j] = std::min(pi[j] * s.scale, log);
                    }
                    k.scaled_exp(pi + from, to - from, log, 1.0F);
                    for (int j = from; j < to; ++j) {
                        di[j] = pi[j] * (di[j] - mean) * s.scale;
                    }
                    for (float * r : { pi, di }) {
                        std::fill(r, r + from, 0.0F);
                        std::fill(r + to, r + seen, 0.0F);
                    }
                }
                float * dq = rows + static_cast<std::size_t>(i0) * s.qkv_width() + head * d;
                for (int i = 0; i < queries; ++i) {
                    std::memset(dq + i * s.qkv_width(), 0, sizeof(float) * d);
                }
                times_rows(keys, ds, stride, queries, seen, keys.pk, keys.k, dq, s.qkv_width());
                back(ds, seen, q, s.qkv_width(), queries, dpk, dk);
                back(p, seen, dy, s.q_width(), queries, dpv, dv);
            }
        }
    });
    if (s.prefix > 0) {
        session.rows(static_cast<int>(partial), 64, [&](int first, int last) {
            for (int e = 0; e < s.examples; ++e) {
                kernels().add_scaled(partials + 2 * partial * e + first, 1.0F, last - first, d_prefix_k + first);
                kernels().add_scaled(partials + 2 * partial * e + partial + first, 1.0F, last - first, d_prefix_v + first);
            }
        });
    }
}

}  // namespace mf
