#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../kernels/kernels.hpp"

namespace mf {

// Queries taken at a time: their scores against all keys stay in the cache (FlashAttention's recomputation on the way back,
// Dao et al. 2022, with whole rows instead of tiles, since examples are short).
static constexpr int QUERIES = 32;

// Examples that are taken together have at most so many keys times widths (one example may have more): what is turned and summed
// for them stays small, and short examples still keep all threads busy.
static constexpr std::size_t RUN_FLOATS = 1U << 18U;
// With fewer heads and examples than this, an example's queries are split between items, each with sums of its own.
static constexpr int ITEMS_WANTED = 8;

namespace {

int padded(int n) { return (n + 15) / 16 * 16; }

// One example of a run. Its turned keys are [kv_heads][head_dim][stride] from `at` on.
struct Place {
    int         example;
    int         length;  // own rows
    int         total;   // with the prefix
    int         stride;
    std::size_t at;
};

struct Run {
    std::vector<Place> places;
    std::size_t        floats = 0;  // of turned keys
    int                total  = 0;  // of the longest example
    int                stride = 0;
    int                blocks = 0;
};

std::vector<Run> runs_of(const AttentionShape & s) {
    std::vector<Run> runs;
    for (int e = 0; e < s.examples; ++e) {
        const int         length = s.starts[e + 1] - s.starts[e];
        const int         stride = padded(s.prefix + length);
        const std::size_t floats = static_cast<std::size_t>(stride) * s.kv_width();
        if (runs.empty() || runs.back().floats + floats > RUN_FLOATS) {
            runs.emplace_back();
        }
        Run & run = runs.back();
        run.places.push_back({ e, length, s.prefix + length, stride, run.floats });
        run.floats += floats;
        run.total  = std::max(run.total, s.prefix + length);
        run.stride = std::max(run.stride, stride);
        run.blocks = std::max(run.blocks, (length + QUERIES - 1) / QUERIES);
    }
    return runs;
}

// Depends on the examples alone: the order of sums must not depend on the number of threads.
int lanes_of(const AttentionShape & s, const Run & run) {
    return std::clamp(ITEMS_WANTED / (static_cast<int>(run.places.size()) * s.kv_heads), 1, run.blocks);
}

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

// Work of QUERIES queries of one key/value head that see `total` keys in `products` products.
double block_work(const AttentionShape & s, int total, int products) {
    return FLOAT_MACS * products * (s.heads / s.kv_heads) * QUERIES * static_cast<double>(total) * s.head_dim;
}

double turn_work(const AttentionShape & s, const Run & run) { return ELEMENT_MACS * run.stride * s.head_dim; }

// Scores of a block of queries become probabilities; outside what a query sees they become 0.
void clear_unseen(float * scores, int from, int to, int seen) {
    std::fill(scores, scores + from, 0.0F);
    std::fill(scores + to, scores + seen, 0.0F);
}

}  // namespace

std::size_t attention_floats(const AttentionShape & s, int rows, int threads) {
    const std::size_t total = padded(std::max<int>(static_cast<int>(RUN_FLOATS) / s.kv_width(), rows + s.prefix));
    return 2 * total *
           (static_cast<std::size_t>(s.head_dim) * (s.kv_heads + std::max(s.kv_heads, ITEMS_WANTED)) + QUERIES * threads);
}

void attention_forward(Session & session, const AttentionShape & s, const float * qkv, float * out, float * lse,
                       Floats & scratch) {
    struct Piece {
        int place;
        int i0;
    };
    const int d     = s.head_dim;
    const int group = s.heads / s.kv_heads;
    for (const Run & run : runs_of(s)) {
        const std::size_t each = static_cast<std::size_t>(run.stride) * QUERIES;
        scratch.resize(run.floats + each * session.threads());
        session.items(static_cast<int>(run.places.size()) * s.kv_heads, turn_work(s, run), [&](int item, int) {
            const Place & place   = run.places[item / s.kv_heads];
            const int     kv_head = item % s.kv_heads;
            const Keys    keys    = keys_of(s, qkv, place.example, kv_head);
            turn(keys, keys.pk, keys.k, scratch.data() + place.at + static_cast<std::size_t>(kv_head) * d * place.stride,
                 place.stride);
        });
        // The last queries see the most keys: first come those that take longest.
        std::vector<Piece> pieces;
        for (int i0 = (run.blocks - 1) * QUERIES; i0 >= 0; i0 -= QUERIES) {
            for (int place = 0; place < static_cast<int>(run.places.size()); ++place) {
                if (i0 < run.places[place].length) {
                    pieces.push_back({ place, i0 });
                }
            }
        }
        session.items(static_cast<int>(pieces.size()) * s.kv_heads, block_work(s, run.total, 2), [&](int item, int thread) {
            const auto &  k       = kernels();
            const Place & place   = run.places[pieces[item / s.kv_heads].place];
            const int     i0      = pieces[item / s.kv_heads].i0;
            const int     kv_head = item % s.kv_heads;
            const int     stride  = place.stride;
            const Keys    keys    = keys_of(s, qkv, place.example, kv_head);
            const float * kt      = scratch.data() + place.at + static_cast<std::size_t>(kv_head) * d * stride;
            float *       p       = scratch.data() + run.floats + thread * each;
            const int     queries = std::min(QUERIES, place.length - i0);
            const int     seen    = last_key(s, i0 + queries - 1);
            const auto    row     = static_cast<std::size_t>(s.starts[place.example]) + i0;
            for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
                const float * q = qkv + row * s.qkv_width() + head * d;
                std::memset(p, 0, sizeof(float) * stride * queries);
                k.gemm_nn(q, s.qkv_width(), queries, kt, stride, d, 0, seen, p, stride);
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
                    clear_unseen(scores, from, to, seen);
                    lse[(row + i) * s.heads + head] = top + std::log(total);
                }
                float * y = out + row * s.q_width() + head * d;
                for (int i = 0; i < queries; ++i) {
                    std::memset(y + static_cast<std::size_t>(i) * s.q_width(), 0, sizeof(float) * d);
                }
                times_rows(keys, p, stride, queries, seen, keys.pv, keys.v, y, s.q_width());
            }
        });
    }
}

void attention_backward(Session & session, const AttentionShape & s, const float * qkv, const float * out, const float * lse,
                        const float * d_out, float * d_qkv, float * d_prefix_k, float * d_prefix_v, Floats & scratch) {
    const int d     = s.head_dim;
    const int group = s.heads / s.kv_heads;
    for (const Run & run : runs_of(s)) {
        // Lane l of an example takes its blocks of queries l, l + lanes, … and sums the gradients of keys and values on its own.
        const int         lanes    = lanes_of(s, run);
        const int         examples = static_cast<int>(run.places.size());
        const std::size_t each     = static_cast<std::size_t>(run.stride) * 2 * QUERIES;
        scratch.resize(2 * run.floats * (1 + lanes) + each * session.threads());
        float * const turned    = scratch.data();
        float * const sums      = turned + 2 * run.floats;
        float * const of_thread = sums + 2 * run.floats * lanes;
        // What one key/value head of an example has of either: keys and values turned, or a lane's sums [total][head_dim] of
        // both.
        const auto head_of = [&](float * base, const Place & place, int kv_head) {
            return base + 2 * (place.at + static_cast<std::size_t>(kv_head) * d * place.stride);
        };
        session.items(examples * s.kv_heads, (2 + 2 * lanes) * turn_work(s, run), [&](int item, int) {
            const Place &     place   = run.places[item / s.kv_heads];
            const int         kv_head = item % s.kv_heads;
            const Keys        keys    = keys_of(s, qkv, place.example, kv_head);
            const std::size_t size    = static_cast<std::size_t>(place.stride) * d;
            float *           kt      = head_of(turned, place, kv_head);
            turn(keys, keys.pk, keys.k, kt, place.stride);
            turn(keys, keys.pv, keys.v, kt + size, place.stride);
            for (int lane = 0; lane < lanes; ++lane) {
                std::memset(head_of(sums + 2 * run.floats * lane, place, kv_head), 0, sizeof(float) * 2 * size);
            }
        });
        const auto block = [&](const Place & place, int kv_head, int lane, int i0, int thread) {
            const auto &      k       = kernels();
            const int         stride  = place.stride;
            const std::size_t size    = static_cast<std::size_t>(stride) * d;
            const Keys        keys    = keys_of(s, qkv, place.example, kv_head);
            const float *     kt      = head_of(turned, place, kv_head);
            float *           dk      = head_of(sums + 2 * run.floats * lane, place, kv_head);
            float *           p       = of_thread + thread * each;
            float *           ds      = p + static_cast<std::size_t>(stride) * QUERIES;
            const int         queries = std::min(QUERIES, place.length - i0);
            const int         seen    = last_key(s, i0 + queries - 1);
            const auto        row     = static_cast<std::size_t>(s.starts[place.example]) + i0;
            for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
                const float * q  = qkv + row * s.qkv_width() + head * d;
                const float * y  = out + row * s.q_width() + head * d;
                const float * dy = d_out + row * s.q_width() + head * d;
                std::memset(p, 0, sizeof(float) * stride * queries);
                std::memset(ds, 0, sizeof(float) * stride * queries);
                k.gemm_nn(q, s.qkv_width(), queries, kt, stride, d, 0, seen, p, stride);
                k.gemm_nn(dy, s.q_width(), queries, kt + size, stride, d, 0, seen, ds, stride);
                for (int i = 0; i < queries; ++i) {
                    float *     pi   = p + static_cast<std::size_t>(i) * stride;
                    float *     di   = ds + static_cast<std::size_t>(i) * stride;
                    const int   from = first_key(s, i0 + i);
                    const int   to   = last_key(s, i0 + i);
                    const float mean =
                        k.dot(dy + static_cast<std::size_t>(i) * s.q_width(), y + static_cast<std::size_t>(i) * s.q_width(), d);
                    const float log = lse[(row + i) * s.heads + head];
                    for (int j = from; j < to; ++j) {
                        pi[j] = std::min(pi[j] * s.scale, log);
                    }
                    k.scaled_exp(pi + from, to - from, log, 1.0F);
                    for (int j = from; j < to; ++j) {
                        di[j] = pi[j] * (di[j] - mean) * s.scale;
                    }
                    clear_unseen(pi, from, to, seen);
                    clear_unseen(di, from, to, seen);
                }
                float * dq = d_qkv + row * s.qkv_width() + head * d;
                for (int i = 0; i < queries; ++i) {
                    std::memset(dq + i * s.qkv_width(), 0, sizeof(float) * d);
                }
                times_rows(keys, ds, stride, queries, seen, keys.pk, keys.k, dq, s.qkv_width());
                k.gemm_tn(ds, stride, q, s.qkv_width(), queries, seen, 0, d, dk, d);
                k.gemm_tn(p, stride, dy, s.q_width(), queries, seen, 0, d, dk + size, d);
            }
        };
        // A pass takes as many blocks of every lane as fit into an operation.
        const int    items  = examples * s.kv_heads * lanes;
        const int    rounds = (run.blocks + lanes - 1) / lanes;
        const double work   = block_work(s, run.total, 5);
        const int    pass   = static_cast<int>(std::clamp<double>(OPERATION_MACS / (items * work), 1, rounds));
        for (int first = 0; first < rounds; first += pass) {
            session.items(items, pass * work, [&](int item, int thread) {
                const Place & place   = run.places[item / (s.kv_heads * lanes)];
                const int     kv_head = item / lanes % s.kv_heads;
                const int     lane    = item % lanes;
                for (int round = first; round < std::min(first + pass, rounds); ++round) {
                    const int i0 = (round * lanes + lane) * QUERIES;
                    if (i0 < place.length) {
                        block(place, kv_head, lane, i0, thread);
                    }
                }
            });
        }
        // Sums of the lanes, in order: own keys and values, then those of the prefix.
        session.items(examples * s.kv_heads, (2 + 2 * lanes) * turn_work(s, run), [&](int item, int) {
            const Place & place   = run.places[item / s.kv_heads];
            const int     kv_head = item % s.kv_heads;
            for (int j = 0; j < place.length; ++j) {
                float * dk = d_qkv + (s.starts[place.example] + j) * s.qkv_width() + s.q_width() + kv_head * d;
                float * dv = dk + s.kv_width();
                for (int lane = 0; lane < lanes; ++lane) {
                    const float * from =
                        head_of(sums + 2 * run.floats * lane, place, kv_head) + static_cast<std::size_t>(s.prefix + j) * d;
                    const float * from_v = from + static_cast<std::size_t>(place.stride) * d;
                    if (lane == 0) {
                        std::memcpy(dk, from, sizeof(float) * d);
                        std::memcpy(dv, from_v, sizeof(float) * d);
                    } else {
                        kernels().add_scaled(from, 1.0F, d, dk);
                        kernels().add_scaled(from_v, 1.0F, d, dv);
                    }
                }
            }
        });
        session.rows(s.prefix, 4, ELEMENT_MACS * examples * lanes * s.kv_width(), [&](int first, int last) {
            for (int j = first; j < last; ++j) {
                for (int kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
                    const std::size_t at = static_cast<std::size_t>(j) * s.kv_width() + kv_head * d;
                    for (int part = 0; part < examples * lanes; ++part) {
                        const Place & place = run.places[part / lanes];
                        const float * from =
                            head_of(sums + 2 * run.floats * (part % lanes), place, kv_head) + static_cast<std::size_t>(j) * d;
                        kernels().add_scaled(from, 1.0F, d, d_prefix_k + at);
                        kernels().add_scaled(from + static_cast<std::size_t>(place.stride) * d, 1.0F, d, d_prefix_v + at);
                    }
                }
            }
        });
    }
}

}  // namespace mf
