#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../error.hpp"

namespace mf {

void rms_norm_back(const float * x, const float * w, const float * dy, int n, float epsilon, float * dx) {
    const float r = 1.0F / std::sqrt(kernels().dot(x, x, n) / static_cast<float>(n) + epsilon);
    float       s = 0;
    for (int i = 0; i < n; ++i) {
        s += x[i] * w[i] * dy[i];
    }
    const float k = s * r * r * r / static_cast<float>(n);
    for (int i = 0; i < n; ++i) {
        dx[i] += r * w[i] * dy[i] - k * x[i];
    }
}

// Calls f with every buffer and its width; the one place that knows the widths.
template <typename F> static void each_buffer(Activations & a, const Model & model, const Parameters & parameters, F f) {
    const auto & h = model.h();
    f(a.x, h.embedding);
    f(a.raw, h.qk_norm ? h.q_width() + h.kv_width() : 0);
    f(a.qkv, h.q_width() + 2 * h.kv_width());
    f(a.attended, h.q_width());
    f(a.lse, h.heads);
    f(a.mixed, h.post_norms ? h.embedding : 0);
    f(a.middle, h.embedding);
    f(a.gate_up, 2 * h.feed_forward);
    f(a.made, h.post_norms ? h.embedding : 0);
    for (int id = 0; id < SITE_COUNT; ++id) {
        int ranks = 0;
        for (int layer = 0; layer < h.layers; ++layer) {
            ranks = std::max(ranks, parameters.site(layer, static_cast<SiteId>(id)).ranks);
        }
        f(a.u[id], ranks);
    }
}

void Activations::resize(const Model & model, const Parameters & parameters, int rows, bool only_input) {
    each_buffer(*this, model, parameters, [&](Floats & buffer, int width) {
        if (!only_input || &buffer == &x) {
            buffer.resize(static_cast<std::size_t>(rows) * width);
        }
    });
}

std::size_t Activations::bytes() const {
    std::size_t total = 0;
    for (const auto * b : { &x, &raw, &qkv, &attended, &lse, &mixed, &middle, &gate_up, &made }) {
        total += b->bytes();
    }
    for (const auto & b : u) {
        total += b.bytes();
    }
    return total;
}

std::size_t Activations::floats_per_row(const Model & model, const Parameters & parameters) {
    Activations none;
    std::size_t total = 0;
    each_buffer(none, model, parameters, [&](Floats &, int width) { total += width; });
    return total;
}

BlockContext::BlockContext(const Model & model, const TransposedModel * transposed, Parameters & parameters,
                           const TrainerOptions & options)
    : model_(model), h_(model.h()), transposed_(transposed), parameters_(parameters), options_(options) {
    for (int layer = 0; layer < h_.layers; ++layer) {
        for (int id = 0; id < SITE_COUNT; ++id) {
            shapes_.push_back(shape_of(model.layers[layer].sites[id]));
        }
    }
}

void BlockContext::begin(Session & session, const RowsInfo & rows) {
    rows_            = rows;
    const auto count = static_cast<std::size_t>(rows.rows);
    global_.set(session, model_, false, rows_.positions.data(), rows_.rows);
    if (h_.window > 0) {
        local_.set(session, model_, true, rows_.positions.data(), rows_.rows);
    }
    int widest = 0;
    for (const auto & shape : shapes_) {
        widest = std::max({ widest, shape.out, shape.in });
    }
    normed_.resize(count * h_.embedding);
    wide_.resize(count * h_.feed_forward);
    outputs_.resize(count * widest);
    d_wide_.resize(count * widest);
    d_narrow_.resize(count * std::max(h_.embedding, h_.q_width()));
    du_.resize(count * std::max(1, parameters_.ranks_max()));
    if (options_.dropout > 0) {
        masked_.resize(count * widest);
    }
}

AttentionShape BlockContext::attention_shape(int layer) const {
    AttentionShape shape{ rows_.starts,      rows_.examples, h_.heads, h_.kv_heads, h_.head_dim, h_.local[layer] ? h_.window : 0,
                          h_.attention_scale };
    if (options_.prefix && rows_.adapter) {
        shape.prefix   = options_.prefix_tokens;
        shape.prefix_k = parameters_.values() + parameters_.prefix(layer).k;
        shape.prefix_v = parameters_.values() + parameters_.prefix(layer).v;
    }
    return shape;
}

// Dropout on the input of a site's pairs (inverted: what stays is scaled up). The mask depends on its place alone, so the way
// back finds the same one.
void BlockContext::drop(float * x, int row, int in, int layer, SiteId id) const {
    const uint64_t key = mix(mix(options_.seed ^ 0x64726f70ULL) + rows_.call) +
                         mix((static_cast<uint64_t>(layer) * SITE_COUNT + id) * 0x100000001ULL + row);
    const float keep  = 1.0F - options_.dropout;
    const float scale = 1.0F / keep;
    for (int i = 0; i < in; ++i) {
        x[i] = unit(mix(key + i)) < keep ? x[i] * scale : 0.0F;
    }
}

float * BlockContext::dropped(Session & session, const float * x, int in, int layer, SiteId id, Floats & to) {
    session.rows(rows_.rows, 1, 2 * ELEMENT_MACS * in, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            float * copy = to.data() + static_cast<std::size_t>(row) * in;
            std::memcpy(copy, x + static_cast<std::size_t>(row) * in, sizeof(float) * in);
            drop(copy, row, in, layer, id);
        }
    });
    return to.data();
}

void BlockContext::site_forward(Session & session, int layer, SiteId id, const float * x, float * y, float * u) {
    const Site &      site  = model_.layers[layer].sites[id];
    const SiteShape & shape = shapes_[static_cast<std::size_t>(layer) * SITE_COUNT + id];
    const auto &      pairs = parameters_.site(layer, id);
    const bool        lora  = rows_.adapter && pairs.ranks > 0;
    const float *     v     = parameters_.values();
    const float *     xd    = lora && rows_.dropout ? dropped(session, x, site.in, layer, id, masked_) : x;
    const int         sums  = site.in / 32;
    if (site.packed()) {
        rounded_.resize(rows_.rows, site.in);
    }
    if (site.corrected()) {
        sums_.resize(static_cast<std::size_t>(rows_.rows) * sums);
    }
    const double low_rank = lora ? FLOAT_MACS * pairs.ranks : 0;  // of one row and column
    session.rows(rows_.rows, 4, (ELEMENT_MACS / 4 + low_rank) * site.in, [&](int first, int last) {
        if (site.packed()) {
            rounded_.round(x, site.in, first, last);
        }
        for (int row = first; site.corrected() && row < last; ++row) {
            kernels().block_sums(x + static_cast<std::size_t>(row) * site.in, site.in,
                                 sums_.data() + static_cast<std::size_t>(row) * sums);
        }
        if (lora) {
            kernels().gemm_nt(xd + static_cast<std::size_t>(first) * site.in, site.in, last - first, v + pairs.a, site.in,
                              site.in, pairs.ranks, options_.scale, u + static_cast<std::size_t>(first) * pairs.ranks,
                              pairs.ranks);
        }
    });
    int part_at = 0;
    for (const auto & part : site.parts) {
        // y += bias + B u for rows [r0, r1) and the part's columns [c0, c1)
        const auto finish = [&](int r0, int r1, int c0, int c1) {
            if (part.bias != nullptr) {
                for (int row = r0; row < r1; ++row) {
                    kernels().add_scaled(floats_of(part.bias) + c0, 1.0F, c1 - c0,
                                         y + static_cast<std::size_t>(row) * shape.out + part_at + c0);
                }
            }
            for (const auto & span : part.spans) {
                const auto & pair = pairs.pairs[place_of(span.target).index];
                const int    a    = std::max(c0, span.offset) - span.offset;
                const int    b    = std::min(c1, span.offset + span.out) - span.offset;
                if (lora && pair.trained && a < b) {
                    kernels().gemm_nn(u + static_cast<std::size_t>(r0) * pairs.ranks + pair.rank_at, pairs.ranks, r1 - r0,
                                      v + pair.bt, pair.out, options_.rank, a, b,
                                      y + static_cast<std::size_t>(r0) * shape.out + part_at + span.offset, shape.out);
                }
            }
        };
        if (!part.packed.empty()) {
            product_packed(session, part.packed.matrix(), rounded_, rows_.rows, y + part_at, shape.out, GROUPS_AT_ONCE, low_rank,
                           [&](int c0, int c1) { finish(0, rows_.rows, c0, c1); });
        } else {
            const bool whole = part.out == shape.out;
            if (!whole) {
                part_.resize(static_cast<std::size_t>(rows_.rows) * part.out);
            }
            float * to = whole ? y : part_.data();
            product_ggml(session, model_.backend(), part.weight, x, rows_.rows, to);
            const double corrected = part.correction.empty() ? 0 : FLOAT_MACS * sums;
            session.rows(rows_.rows, 4, (ELEMENT_MACS / 4 + low_rank + corrected) * part.out, [&](int first, int last) {
                if (!part.correction.empty()) {
                    kernels().gemm_nn(sums_.data() + static_cast<std::size_t>(first) * sums, sums, last - first,
                                      part.correction.data(), part.out, sums, 0, part.out,
                                      to + static_cast<std::size_t>(first) * part.out, part.out);
                }
                for (int row = first; !whole && row < last; ++row) {
                    std::memcpy(y + static_cast<std::size_t>(row) * shape.out + part_at,
                                to + static_cast<std::size_t>(row) * part.out, sizeof(float) * part.out);
                }
                finish(first, last, 0, part.out);
            });
        }
        part_at += part.out;
    }
}

void BlockContext::site_backward(Session & session, int layer, SiteId id, const float * x, const float * u, const float * dy,
                                 float * dx) {
    const Site &       site   = model_.layers[layer].sites[id];
    const SiteShape &  shape  = shapes_[static_cast<std::size_t>(layer) * SITE_COUNT + id];
    const auto &       pairs  = parameters_.site(layer, id);
    const bool         lora   = pairs.ranks > 0;
    const float *      v      = parameters_.values();
    const Transposed & frozen = transposed_->site(layer, id);
    float *            du     = du_.data();
    if (dx != nullptr && frozen.packed()) {
        rounded_.resize(rows_.rows, shape.out);
    }
    const double low_rank = FLOAT_MACS * pairs.ranks;  // of one row and column
    session.rows(rows_.rows, 4, (ELEMENT_MACS / 4 + low_rank) * shape.out, [&](int first, int last) {
        if (dx != nullptr && frozen.packed()) {
            rounded_.round(dy, shape.out, first, last);
        }
        for (int index = 0; lora && index < targets_in(id); ++index) {
            const auto & pair = pairs.pairs[index];
            if (pair.trained) {
                kernels().gemm_nt(dy + static_cast<std::size_t>(first) * shape.out + shape.offset[index], shape.out, last - first,
                                  v + pair.bt, pair.out, pair.out, options_.rank, options_.scale,
                                  du + static_cast<std::size_t>(first) * pairs.ranks + pair.rank_at, pairs.ranks);
            }
        }
    });
    if (lora) {
        const float * xd = rows_.dropout ? dropped(session, x, site.in, layer, id, masked_) : x;
        float *       g  = parameters_.gradients();
        session.rows(site.in, 32, low_rank * rows_.rows, [&](int first, int last) {
            kernels().gemm_tn(du, pairs.ranks, xd, site.in, rows_.rows, pairs.ranks, first, last, g + pairs.a, site.in);
        });
        session.rows(shape.out, 32, low_rank * rows_.rows, [&](int first, int last) {
            for (int index = 0; index < targets_in(id); ++index) {
                const auto & pair = pairs.pairs[index];
                const int    a    = std::max(first, shape.offset[index]) - shape.offset[index];
                const int    b    = std::min(last, shape.offset[index] + pair.out) - shape.offset[index];
                if (pair.trained && a < b) {
                    kernels().gemm_tn(u + pair.rank_at, pairs.ranks, dy + shape.offset[index], shape.out, rows_.rows,
                                      options_.rank, a, b, g + pair.bt, pair.out);
                }
            }
        });
    }
    if (dx == nullptr) {
        return;
    }
    const auto add_low_rank = [&](int r0, int r1, int c0, int c1) {
        if (lora && !rows_.dropout) {
            kernels().gemm_nn(du + static_cast<std::size_t>(r0) * pairs.ranks, pairs.ranks, r1 - r0, v + pairs.a, site.in,
                              pairs.ranks, c0, c1, dx + static_cast<std::size_t>(r0) * site.in, site.in);
        }
    };
    if (frozen.packed()) {
        product_packed(session, frozen.matrix().matrix(), rounded_, rows_.rows, dx, site.in, GROUPS_AT_ONCE, low_rank,
                       [&](int c0, int c1) { add_low_rank(0, rows_.rows, c0, c1); });
    } else {
        product_ggml(session, model_.backend(), frozen.weight(), dy, rows_.rows, dx);
        session.rows(rows_.rows, 4, low_rank * site.in, [&](int first, int last) { add_low_rank(first, last, 0, site.in); });
    }
    if (lora && rows_.dropout) {
        session.rows(rows_.rows, 4, (2 * ELEMENT_MACS + low_rank) * site.in, [&](int first, int last) {
            float * d = masked_.data() + static_cast<std::size_t>(first) * site.in;
            std::memset(d, 0, sizeof(float) * (last - first) * site.in);
            kernels().gemm_nn(du + static_cast<std::size_t>(first) * pairs.ranks, pairs.ranks, last - first, v + pairs.a, site.in,
                              pairs.ranks, 0, site.in, d, site.in);
            for (int row = first; row < last; ++row) {
                float * r = masked_.data() + static_cast<std::size_t>(row) * site.in;
                drop(r, row, site.in, layer, id);
                kernels().add_scaled(r, 1.0F, site.in, dx + static_cast<std::size_t>(row) * site.in);
            }
        });
    }
}

void BlockContext::forward(Session & session, int layer, Activations & a, float * out) {
    const Layer &     w        = model_.layers[layer];
    const int         d        = h_.embedding;
    const auto        qkv_row  = static_cast<std::size_t>(h_.q_width()) + 2 * h_.kv_width();
    const auto &      rotation = h_.local[layer] ? local_ : global_;
    const SiteShape & qkv      = shapes_[static_cast<std::size_t>(layer) * SITE_COUNT + SITE_QKV];
    const int         rows     = rows_.rows;
    const auto        at       = [](auto * p, int row, std::size_t width) {
        return p + row * width;
    };

    session.rows(rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            rms_norm(at(a.x.data(), row, d), floats_of(w.attn_norm), d, h_.norm_epsilon, at(normed_.data(), row, d));
        }
    });
    site_forward(session, layer, SITE_QKV, normed_.data(), a.qkv.data(), a.u[SITE_QKV].data());
    require(qkv.offset[0] == 0 && qkv.offset[1] == h_.q_width() && qkv.offset[2] == h_.q_width() + h_.kv_width(),
            "architecture_unsupported", "queries, keys and values are not in their usual order");
    session.rows(rows, 1, ELEMENT_MACS * static_cast<double>(qkv_row), [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            float * q = at(a.qkv.data(), row, qkv_row);
            for (int head = 0; head < h_.heads + h_.kv_heads; ++head) {
                float * x = q + head * h_.head_dim;
                if (h_.qk_norm) {
                    float * raw = at(a.raw.data(), row, h_.q_width() + h_.kv_width()) + head * h_.head_dim;
                    std::memcpy(raw, x, sizeof(float) * h_.head_dim);
                    rms_norm(raw, floats_of(head < h_.heads ? w.q_norm : w.k_norm), h_.head_dim, h_.norm_epsilon, x);
                }
                rotation.apply(x, row);
            }
        }
    });
    attention_forward(session, attention_shape(layer), a.qkv.data(), a.attended.data(), a.lse.data(), attention_);
    float * mixed = h_.post_norms ? a.mixed.data() : a.middle.data();
    site_forward(session, layer, SITE_ATTN_OUTPUT, a.attended.data(), mixed, a.u[SITE_ATTN_OUTPUT].data());
    session.rows(rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            float * middle = at(a.middle.data(), row, d);
            if (h_.post_norms) {
                rms_norm(at(a.mixed.data(), row, d), floats_of(w.attn_post_norm), d, h_.norm_epsilon, middle);
            }
            kernels().add_scaled(at(a.x.data(), row, d), 1.0F, d, middle);
            rms_norm(middle, floats_of(w.ffn_norm), d, h_.norm_epsilon, at(normed_.data(), row, d));
        }
    });
    site_forward(session, layer, SITE_GATE_UP, normed_.data(), a.gate_up.data(), a.u[SITE_GATE_UP].data());
    const int ff = h_.feed_forward;
    session.rows(rows, 1, ELEMENT_MACS * ff, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            const float * g = at(a.gate_up.data(), row, 2 * static_cast<std::size_t>(ff));
            kernels().gate(g, g + ff, ff, h_.activation == Activation::gelu, at(wide_.data(), row, ff));
        }
    });
    site_forward(session, layer, SITE_DOWN, wide_.data(), h_.post_norms ? a.made.data() : out, a.u[SITE_DOWN].data());
    session.rows(rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            if (h_.post_norms) {
                rms_norm(at(a.made.data(), row, d), floats_of(w.ffn_post_norm), d, h_.norm_epsilon, at(out, row, d));
            }
            kernels().add_scaled(at(a.middle.data(), row, d), 1.0F, d, at(out, row, d));
        }
    });
}

void BlockContext::backward(Session & session, int layer, Activations & a, float * dx, bool below) {
    const Layer & w        = model_.layers[layer];
    const int     d        = h_.embedding;
    const int     ff       = h_.feed_forward;
    const int     rows     = rows_.rows;
    const auto    qkv_row  = static_cast<std::size_t>(h_.q_width()) + 2 * h_.kv_width();
    const auto &  rotation = h_.local[layer] ? local_ : global_;
    const auto    at       = [](auto * p, int row, std::size_t width) {
        return p + row * width;
    };

    // Feed-forward. The gated values and both norms' outputs are cheaper to compute again than to keep.
    session.rows(rows, 1, ELEMENT_MACS * ff, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            const float * g = at(a.gate_up.data(), row, 2 * static_cast<std::size_t>(ff));
            kernels().gate(g, g + ff, ff, h_.activation == Activation::gelu, at(wide_.data(), row, ff));
            rms_norm(at(a.middle.data(), row, d), floats_of(w.ffn_norm), d, h_.norm_epsilon, at(normed_.data(), row, d));
            if (h_.post_norms) {
                float * made = at(d_narrow_.data(), row, d);
                std::memset(made, 0, sizeof(float) * d);
                rms_norm_back(at(a.made.data(), row, d), floats_of(w.ffn_post_norm), at(dx, row, d), d, h_.norm_epsilon, made);
            }
        }
    });
    site_backward(session, layer, SITE_DOWN, wide_.data(), a.u[SITE_DOWN].data(), h_.post_norms ? d_narrow_.data() : dx,
                  d_wide_.data());
    session.rows(rows, 1, ELEMENT_MACS * ff, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            const float * g  = at(a.gate_up.data(), row, 2 * static_cast<std::size_t>(ff));
            float *       dg = at(outputs_.data(), row, 2 * static_cast<std::size_t>(ff));
            kernels().gate_back(g, g + ff, at(d_wide_.data(), row, ff), ff, h_.activation == Activation::gelu, dg, dg + ff);
        }
    });
    site_backward(session, layer, SITE_GATE_UP, normed_.data(), a.u[SITE_GATE_UP].data(), outputs_.data(), d_wide_.data());
    session.rows(rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            rms_norm_back(at(a.middle.data(), row, d), floats_of(w.ffn_norm), at(d_wide_.data(), row, d), d, h_.norm_epsilon,
                          at(dx, row, d));
            rms_norm(at(a.x.data(), row, d), floats_of(w.attn_norm), d, h_.norm_epsilon, at(normed_.data(), row, d));
            if (h_.post_norms) {
                float * mixed = at(outputs_.data(), row, d);
                std::memset(mixed, 0, sizeof(float) * d);
                rms_norm_back(at(a.mixed.data(), row, d), floats_of(w.attn_post_norm), at(dx, row, d), d, h_.norm_epsilon, mixed);
            }
        }
    });
    // Attention.
    site_backward(session, layer, SITE_ATTN_OUTPUT, a.attended.data(), a.u[SITE_ATTN_OUTPUT].data(),
                  h_.post_norms ? outputs_.data() : dx, d_narrow_.data());
    float * g          = parameters_.gradients();
    float * d_prefix_k = options_.prefix ? g + parameters_.prefix(layer).k : nullptr;
    float * d_prefix_v = options_.prefix ? g + parameters_.prefix(layer).v : nullptr;
    attention_backward(session, attention_shape(layer), a.qkv.data(), a.attended.data(), a.lse.data(), d_narrow_.data(),
                       d_wide_.data(), d_prefix_k, d_prefix_v, attention_);
    session.rows(rows, 1, ELEMENT_MACS * static_cast<double>(qkv_row), [&](int first, int last) {
        std::vector<float> turned(h_.head_dim);
        for (int row = first; row < last; ++row) {
            float * dq = at(d_wide_.data(), row, qkv_row);
            for (int head = 0; head < h_.heads + h_.kv_heads; ++head) {
                float * x = dq + head * h_.head_dim;
                rotation.apply(x, row, true);
                if (h_.qk_norm) {
                    std::copy_n(x, h_.head_dim, turned.data());
                    std::memset(x, 0, sizeof(float) * h_.head_dim);
                    rms_norm_back(at(a.raw.data(), row, h_.q_width() + h_.kv_width()) + head * h_.head_dim,
                                  floats_of(head < h_.heads ? w.q_norm : w.k_norm), turned.data(), h_.head_dim, h_.norm_epsilon,
                                  x);
                }
            }
        }
    });
    site_backward(session, layer, SITE_QKV, normed_.data(), a.u[SITE_QKV].data(), d_wide_.data(),
                  below ? outputs_.data() : nullptr);
    if (below) {
        session.rows(rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
            for (int row = first; row < last; ++row) {
                rms_norm_back(at(a.x.data(), row, d), floats_of(w.attn_norm), at(outputs_.data(), row, d), d, h_.norm_epsilon,
                              at(dx, row, d));
            }
        });
    }
}

std::size_t BlockContext::bytes() const {
    std::size_t total = rounded_.bytes();
    for (const auto * b : { &sums_, &normed_, &wide_, &outputs_, &d_wide_, &d_narrow_, &du_, &masked_, &attention_, &part_ }) {
        total += b->bytes();
    }
    return total;
}

std::size_t BlockContext::bytes_for(const Model & model, const TrainerOptions & options) {
    const auto &      h       = model.h();
    const std::size_t widest  = std::max({ 2 * h.feed_forward, h.q_width() + 2 * h.kv_width(), h.embedding });
    const std::size_t per_row = 2 * h.embedding + h.feed_forward + 3 * widest + 3 * options.rank + widest;
    AttentionShape    shape{};
    shape.kv_heads            = h.kv_heads;
    shape.head_dim            = h.head_dim;
    shape.prefix              = options.prefix_tokens;
    const std::size_t scratch = attention_floats(shape, options.rows_max, model.backend().threads());
    return (options.rows_max * per_row + scratch) * sizeof(float);
}

}  // namespace mf
