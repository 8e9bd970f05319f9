#include "cpu_forward.hpp"

#include <cmath>
#include <cstring>

#include "kernels/kernels.hpp"

namespace mf {

// Rows of A taken at a time: a few products at once hide each other's latency.
static constexpr int RANKS_AT_ONCE = 8;

CpuForward::CpuForward(const Model & model, const KvCache & cache) : model_(model), h_(model.h()), cache_(cache) {
    for (const auto & layer : model.layers) {
        for (const auto & site : layer.sites) {
            shapes_.push_back(shape_of(site));
        }
    }
}

template <typename ImageOf> void CpuForward::segment(int rows, ImageOf image_of, std::vector<Segment> & out) {
    out.clear();
    for (int row = 0; row < rows; ++row) {
        const AdapterImage * image = image_of(row);
        if (!out.empty() && out.back().image == image) {
            ++out.back().count;
        } else {
            out.push_back({ row, 1, image });
        }
    }
}

void CpuForward::resize(const ForwardRows & r) {
    const auto rows = static_cast<std::size_t>(r.rows);
    x_.resize(rows * h_.embedding);
    normed_.resize(rows * h_.embedding);
    qkv_.resize(rows * (h_.q_width() + 2 * h_.kv_width()));
    attended_.resize(rows * h_.q_width());
    mixed_.resize(rows * h_.embedding);
    gate_up_.resize(rows * 2 * h_.feed_forward);
    wide_.resize(rows * h_.feed_forward);
    sums_.resize(rows * (std::max({ h_.embedding, h_.q_width(), h_.feed_forward }) / 32));
}

// u = A x for every row's adapter. The work is the sum over segments of rows × ranks.
void CpuForward::low_rank_inputs(Session & session, int layer, SiteId id, const std::vector<Segment> & segments, const float * x,
                                 int in) {
    struct Piece {
        const Segment * segment;
        int             r0;
    };
    std::vector<Piece> pieces;
    for (const auto & s : segments) {
        for (int r = 0; s.image != nullptr && r < s.image->site(layer, id).rank; r += RANKS_AT_ONCE) {
            pieces.push_back({ &s, r });
        }
    }
    if (pieces.empty()) {
        return;
    }
    session.items(static_cast<int>(pieces.size()), 0, [&](int item, int) {
        const Segment & s       = *pieces[item].segment;
        const auto &    weights = s.image->site(layer, id);
        kernels().lora_a(x + static_cast<std::size_t>(s.first) * in, in, s.count, s.image->weights() + weights.a, in,
                         pieces[item].r0, std::min(pieces[item].r0 + RANKS_AT_ONCE, weights.rank),
                         u_.data() + s.first * u_stride_, u_stride_);
    });
}

// y += B u for the output columns [o0, o1) of a part.
void CpuForward::add_deltas(int layer, SiteId id, const std::vector<Segment> & segments, const Part & part, int o0, int o1,
                            float * y, std::size_t stride) const {
    for (const auto & s : segments) {
        if (s.image == nullptr) {
            continue;
        }
        for (const auto & span : s.image->site(layer, id).spans) {
            for (const auto & place : part.spans) {
                const int a = std::max(o0, place.offset) - place.offset;
                const int b = std::min(o1, place.offset + place.out) - place.offset;
                if (place.target == span.target && a < b) {
                    kernels().lora_b(u_.data() + s.first * u_stride_ + span.rank_offset, u_stride_, s.count,
                                     s.image->weights() + span.bt, span.rank, place.out, a, b,
                                     y + s.first * stride + place.offset, stride);
                }
            }
        }
    }
}

template <typename Prepare>
void CpuForward::site(Session & session, int layer, SiteId id, const std::vector<Segment> & segments, int rows, float * x,
                      float * y, Prepare prepare) {
    const Site &      site  = model_.layers[layer].sites[id];
    const SiteShape & shape = shapes_[static_cast<std::size_t>(layer) * SITE_COUNT + id];
    const int         sums  = site.in / 32;
    if (site.packed()) {
        rounded_.resize(rows, site.in);
    }
    session.rows(rows, 1, 0, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            prepare(row);
            if (site.packed()) {
                rounded_.round(x, site.in, row, row + 1);
            }
            if (site.corrected()) {
                kernels().block_sums(x + static_cast<std::size_t>(row) * site.in, site.in,
                                     sums_.data() + static_cast<std::size_t>(row) * sums);
            }
        }
    });
    low_rank_inputs(session, layer, id, segments, x, site.in);
    int part_at = 0;
    for (const auto & part : site.parts) {
        const auto finish = [&](float * to, std::size_t stride, int o0, int o1) {
            for (int row = 0; part.bias != nullptr && row < rows; ++row) {
                kernels().add_scaled(floats_of(part.bias) + o0, 1.0F, o1 - o0, to + row * stride + o0);
            }
            add_deltas(layer, id, segments, part, o0, o1, to, stride);
        };
        if (!part.packed.empty()) {
            float * to = y + part_at;
            product_packed(session, part.packed.matrix(), rounded_, rows, to, shape.out, GROUPS_AT_ONCE, 0,
                           [&](int o0, int o1) { finish(to, shape.out, o0, o1); });
        } else {
            const bool whole = part.out == shape.out;
            if (!whole) {
                part_.resize(static_cast<std::size_t>(rows) * part.out);
            }
            float * to = whole ? y : part_.data();
            product_ggml(session, model_.backend(), part.weight, x, rows, to);
            session.rows(part.out, 64, 0, [&](int o0, int o1) {
                if (!part.correction.empty()) {
                    kernels().gemm_nn(sums_.data(), sums, rows, part.correction.data(), part.out, sums, o0, o1, to, part.out);
                }
                finish(to, part.out, o0, o1);
                for (int row = 0; !whole && row < rows; ++row) {
                    std::memcpy(y + static_cast<std::size_t>(row) * shape.out + part_at + o0,
                                to + static_cast<std::size_t>(row) * part.out + o0, sizeof(float) * (o1 - o0));
                }
            });
        }
        part_at += part.out;
    }
}

// Norms and turns a row's queries and keys, and puts its keys and values into the cache.
void CpuForward::store(const ForwardRows & r, int layer, int row) {
    const Layer & w    = model_.layers[layer];
    float *       q    = qkv_.data() + static_cast<std::size_t>(row) * (h_.q_width() + 2 * h_.kv_width());
    const float * k    = q + h_.q_width();
    const auto &  turn = h_.local[layer] ? local_ : global_;
    for (int head = 0; head < h_.heads + h_.kv_heads; ++head) {
        float * x = q + head * h_.head_dim;
        if (h_.qk_norm) {
            rms_norm(x, floats_of(head < h_.heads ? w.q_norm : w.k_norm), h_.head_dim, h_.norm_epsilon, x);
        }
        turn.apply(x, row);
    }
    for (const ggml_tensor * cache : { cache_.k(layer), cache_.v(layer) }) {
        char *        to   = static_cast<char *>(cache->data) + r.cells[row] * cache->nb[1];
        const float * from = cache == cache_.k(layer) ? k : k + h_.kv_width();
        if (cache->type == GGML_TYPE_F16) {
            kernels().to_half(from, h_.kv_width(), reinterpret_cast<uint16_t *>(to));
        } else {
            std::memcpy(to, from, sizeof(float) * h_.kv_width());
        }
    }
}

void CpuForward::attend(Session & session, const ForwardRows & r, int layer) {
    const int blocks = static_cast<int>(blocks_.size());
    // Query heads that share keys are best done together; with little else to share out, each goes alone.
    const bool        fine   = blocks * h_.kv_heads < 4 * session.threads();
    const int         group  = fine ? 1 : h_.heads / h_.kv_heads;
    const int         splits = h_.heads / group;
    const std::size_t each   = (attention_scratch_floats(h_.head_dim, group * ATTENTION_ROWS_MAX) + 15) / 16 * 16;
    const auto        width  = static_cast<std::size_t>(h_.q_width()) + 2 * h_.kv_width();
    scratch_.resize(each * session.threads());
    session.items(blocks * splits, 0, [&](int item, int thread) {
        const RowBlock & rows = blocks_[item / splits];
        const int        head = item % splits * group;
        AttentionBlock   block;
        block.q           = qkv_.data() + rows.first * width;
        block.q_stride    = width;
        block.out         = attended_.data() + static_cast<std::size_t>(rows.first) * h_.q_width();
        block.out_stride  = h_.q_width();
        block.k           = cache_.k(layer)->data;
        block.v           = cache_.v(layer)->data;
        block.cache_f32   = cache_.k(layer)->type == GGML_TYPE_F32;
        block.cell_stride = static_cast<std::size_t>(h_.kv_width());
        block.cells       = cache_.cells_of(r.sequences[rows.first]).data();
        block.positions   = r.positions + rows.first;
        block.rows        = rows.count;
        block.head_first  = head;
        block.group       = group;
        block.kv_head     = head / (h_.heads / h_.kv_heads);
        block.head_dim    = h_.head_dim;
        block.window      = h_.local[layer] ? h_.window : 0;
        block.scale       = h_.attention_scale;
        kernels().attention(block, scratch_.data() + thread * each);
    });
}

float * CpuForward::head(Session & session, int rows, bool hidden) {
    const int  d      = h_.embedding;
    const bool packed = !model_.packed_output.empty();
    rounded_.resize(rows, d);
    session.rows(rows, 1, 0, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            const std::size_t at = static_cast<std::size_t>(row) * d;
            rms_norm(x_.data() + at, floats_of(model_.output_norm), d, h_.norm_epsilon, normed_.data() + at);
            if (packed) {
                rounded_.round(normed_.data(), d, row, row + 1);
            }
        }
    });
    if (hidden) {
        return normed_.data();
    }
    const auto vocabulary = static_cast<std::size_t>(h_.vocabulary);
    logits_.resize(rows * vocabulary);
    const auto cap = [&](int first, int last) {
        for (int row = 0; h_.final_softcap > 0.0F && row < rows; ++row) {
            float * logits = logits_.data() + row * vocabulary;
            for (int i = first; i < last; ++i) {
                logits[i] = std::tanh(logits[i] / h_.final_softcap) * h_.final_softcap;
            }
        }
    };
    if (packed) {
        product_packed(session, model_.packed_output.matrix(), rounded_, rows, logits_.data(), vocabulary, HEAD_GROUPS_AT_ONCE, 0,
                       cap);
    } else {
        product_ggml(session, model_.backend(), model_.output, normed_.data(), rows, logits_.data());
        session.rows(h_.vocabulary, 1024, 0, cap);
    }
    return logits_.data();
}

float * CpuForward::run(Session & session, const ForwardRows & r, const std::vector<const AdapterImage *> & images) {
    const int  d      = h_.embedding;
    const int  ff     = h_.feed_forward;
    const bool narrow = r.output_count < r.rows;
    resize(r);
    segment(
        r.rows, [&](int row) { return images[row]; }, segments_);
    segment(
        r.output_count, [&](int i) { return images[r.outputs[i]]; }, output_segments_);
    u_stride_ = 0;
    for (const auto & s : segments_) {
        u_stride_ = std::max<std::size_t>(u_stride_, s.image == nullptr ? 0 : static_cast<std::size_t>(s.image->rank_max()) * 3);
    }
    u_.resize(r.rows * u_stride_);
    blocks_.clear();
    for (int row = 0; row < r.rows; ++row) {
        if (!blocks_.empty() && blocks_.back().count < ATTENTION_ROWS_MAX &&
            r.sequences[blocks_.back().first] == r.sequences[row]) {
            ++blocks_.back().count;
        } else {
            blocks_.push_back({ row, 1 });
        }
    }
    global_.set(session, model_, false, r.positions, r.rows);
    if (h_.window > 0) {
        local_.set(session, model_, true, r.positions, r.rows);
    }
    const auto at = [](Floats & f, int row, int width) {
        return f.data() + static_cast<std::size_t>(row) * width;
    };
    // The residual stream takes what the last half of a block made, through that half's own norm where there is one.
    const auto add = [&](int row, const ggml_tensor * post_norm) {
        if (post_norm != nullptr) {
            rms_norm(at(mixed_, row, d), floats_of(post_norm), d, h_.norm_epsilon, at(mixed_, row, d));
        }
        kernels().add_scaled(at(mixed_, row, d), 1.0F, d, at(x_, row, d));
    };
    for (int layer = 0; layer < h_.layers; ++layer) {
        const Layer & w    = model_.layers[layer];
        const bool    last = layer == h_.layers - 1;
        site(session, layer, SITE_QKV, segments_, r.rows, normed_.data(), qkv_.data(), [&](int row) {
            if (layer == 0) {
                embed_token(model_, r.tokens[row], at(x_, row, d));
            } else {
                add(row, model_.layers[layer - 1].ffn_post_norm);
            }
            rms_norm(at(x_, row, d), floats_of(w.attn_norm), d, h_.norm_epsilon, at(normed_, row, d));
        });
        session.rows(r.rows, 1, 0, [&](int first, int end) {
            for (int row = first; row < end; ++row) {
                store(r, layer, row);
            }
        });
        if (last && r.output_count == 0) {
            return nullptr;  // the cache is filled, and nobody asked for more
        }
        attend(session, r, layer);
        const bool   only_outputs = last && narrow;
        const int    rows         = last ? r.output_count : r.rows;
        const auto & segments     = last ? output_segments_ : segments_;
        if (only_outputs) {
            // Rising, so a row is never overwritten before it was moved.
            for (int i = 0; i < rows; ++i) {
                std::memmove(at(attended_, i, h_.q_width()), at(attended_, r.outputs[i], h_.q_width()),
                             sizeof(float) * h_.q_width());
                std::memmove(at(x_, i, d), at(x_, r.outputs[i], d), sizeof(float) * d);
            }
        }
        site(session, layer, SITE_ATTN_OUTPUT, segments, rows, attended_.data(), mixed_.data(), [](int) {});
        site(session, layer, SITE_GATE_UP, segments, rows, normed_.data(), gate_up_.data(), [&](int row) {
            add(row, w.attn_post_norm);
            rms_norm(at(x_, row, d), floats_of(w.ffn_norm), d, h_.norm_epsilon, at(normed_, row, d));
        });
        site(session, layer, SITE_DOWN, segments, rows, wide_.data(), mixed_.data(), [&](int row) {
            const float * g = at(gate_up_, row, 2 * ff);
            kernels().gate(g, g + ff, ff, h_.activation == Activation::gelu, at(wide_, row, ff));
        });
    }
    for (int row = 0; row < r.output_count; ++row) {
        add(row, model_.layers.back().ffn_post_norm);
    }
    return head(session, r.output_count, r.hidden);
}

}  // namespace mf
