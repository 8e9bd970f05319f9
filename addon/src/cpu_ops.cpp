#include "cpu_ops.hpp"

#include <algorithm>

#include "kernels/kernels.hpp"

namespace mf {

void StepState::segment(const std::vector<const AdapterImage *> & images, std::vector<Segment> & out) {
    out.clear();
    for (int row = 0; row < static_cast<int>(images.size()); ++row) {
        if (!out.empty() && out.back().image == images[row]) {
            ++out.back().count;
        } else {
            out.push_back({ row, 1, images[row] });
        }
    }
}

static const float * row_of(const ggml_tensor * t, int row) {
    return reinterpret_cast<const float *>(static_cast<const char *>(t->data) + row * t->nb[1]);
}

static std::size_t stride_of(const ggml_tensor * t) { return t->nb[1] / sizeof(float); }

static void quantize_rows(StepState & state, const ggml_tensor * x, int first, int last) {
    const auto        in     = static_cast<std::size_t>(x->ne[0]);
    const std::size_t blocks = in / 32;
    for (int row = first; row < last; ++row) {
        kernels().quantize(row_of(x, row), static_cast<int>(in), state.quants.data() + row * in,
                           state.quant_scales.data() + row * blocks, state.quant_sums.data() + row * blocks,
                           state.quant_counts.data() + row * blocks);
    }
}

static QuantizedRows quantized(const StepState & state, int in) {
    return { state.quants.data(), state.quant_scales.data(), state.quant_sums.data(), state.quant_counts.data(), in };
}

void site_inputs(ggml_tensor * dst, int thread, int threads, void * site_binding) {
    const auto &        binding = *static_cast<const SiteBinding *>(site_binding);
    StepState &         state   = *binding.state;
    const ggml_tensor * x       = dst->src[0];
    const int           in      = binding.site->in;
    const int           rows    = static_cast<int>(x->ne[1]);
    const Kernels &     k       = kernels();

    const int first = rows * thread / threads;
    const int last  = rows * (thread + 1) / threads;
    if (binding.site->packed()) {
        quantize_rows(state, x, first, last);
    }
    if (binding.site->corrected()) {
        for (int row = first; row < last; ++row) {
            k.block_sums(row_of(x, row), in, state.sums.data() + row * state.sums_stride);
        }
    }
    // The work is the sum over segments of rows × ranks; each thread takes an equal share of A's rows.
    const auto & segments = binding.outputs ? state.output_segments : state.segments;
    int64_t      total    = 0;
    for (const auto & s : segments) {
        total += s.image == nullptr ? 0 : static_cast<int64_t>(s.count) * s.image->site(binding.layer, binding.id).rank;
    }
    const int64_t from = total * thread / threads;
    const int64_t to   = total * (thread + 1) / threads;
    int64_t       seen = 0;
    for (const auto & s : segments) {
        if (s.image == nullptr) {
            continue;
        }
        const auto &  weights = s.image->site(binding.layer, binding.id);
        const int64_t work    = static_cast<int64_t>(s.count) * weights.rank;
        // Rank r belongs to the thread in whose share the first of its `count` units lies.
        const auto first_at = [&](int64_t bound) {
            return static_cast<int>(std::clamp<int64_t>((bound - seen + s.count - 1) / s.count, 0, weights.rank));
        };
        const int r0 = first_at(from);
        const int r1 = first_at(to);
        if (r0 < r1) {
            k.lora_a(row_of(x, s.first), stride_of(x), s.count, s.image->weights() + weights.a, in, r0, r1,
                     state.u.data() + s.first * state.u_stride, state.u_stride);
        }
        seen += work;
    }
}

// 16-row groups taken at a time: 64 columns keep two threads out of one cache line, and the head has many.
static constexpr int GROUPS_AT_ONCE      = 4;
static constexpr int HEAD_GROUPS_AT_ONCE = 64;

// Calls f(segment, span, place, first column, last column) for every low-rank pair that reaches the output columns [o0, o1).
template <typename F> static void for_deltas(const SiteBinding & site, const Part & part, int o0, int o1, F f) {
    for (const auto & s : site.outputs ? site.state->output_segments : site.state->segments) {
        if (s.image == nullptr) {
            continue;
        }
        for (const auto & span : s.image->site(site.layer, site.id).spans) {
            for (const auto & place : part.spans) {
                const int a = std::max(o0, place.offset) - place.offset;
                const int b = std::min(o1, place.offset + place.out) - place.offset;
                if (place.target == span.target && a < b) {
                    f(s, span, place, a, b);
                }
            }
        }
    }
}

// y += B u for the output columns [o0, o1) of a part.
static void add_deltas(const SiteBinding & site, const Part & part, int o0, int o1, float * y, std::size_t stride) {
    const StepState & state = *site.state;
    for_deltas(site, part, o0, o1,
               [&](const Segment & s, const AdapterImage::Span & span, const Part::Span & place, int a, int b) {
                   kernels().lora_b(state.u.data() + s.first * state.u_stride + span.rank_offset, state.u_stride, s.count,
                                    s.image->weights() + span.bt, span.rank, place.out, a, b, y + s.first * stride + place.offset,
                                    stride);
               });
}

void part_outputs(ggml_tensor * dst, const ggml_tensor *, const ggml_tensor *, int thread, int threads, void * part_binding) {
    const auto &    binding = *static_cast<const PartBinding *>(part_binding);
    const auto &    site    = *binding.site;
    const Part &    part    = *binding.part;
    StepState &     state   = *site.state;
    const Kernels & k       = kernels();
    const int       rows    = static_cast<int>(dst->ne[1]);
    // Shares of the output columns, in multiples of 64 so that two threads never write one cache line.
    const int  units  = (part.out + 63) / 64;
    const int  o0     = units * thread / threads * 64;
    const int  o1     = std::min(units * (thread + 1) / threads * 64, part.out);
    float *    y      = static_cast<float *>(dst->data);
    const auto stride = stride_of(dst);
    if (o0 >= o1) {
        return;
    }
    if (!part.correction.empty()) {
        k.correction(state.sums.data(), state.sums_stride, rows, part.correction.data(), site.site->in / 32, part.out, o0, o1, y,
                     stride);
    }
    add_deltas(site, part, o0, o1, y, stride);
}

void packed_part(ggml_tensor * dst, int, int, void * part_binding) {
    const auto &    binding = *static_cast<const PartBinding *>(part_binding);
    const auto &    site    = *binding.site;
    const Part &    part    = *binding.part;
    const Kernels & k       = kernels();
    const auto      x       = quantized(*site.state, site.site->in);
    const int       rows    = static_cast<int>(dst->ne[1]);
    const int       groups  = part.out / PACKED_ROWS;
    float *         y       = static_cast<float *>(dst->data);
    const auto      stride  = stride_of(dst);
    // Shares are taken, not dealt: a thread that the system holds up for a while does not hold up the other ones' work.
    for (int group = binding.next->fetch_add(GROUPS_AT_ONCE); group < groups; group = binding.next->fetch_add(GROUPS_AT_ONCE)) {
        const int end = std::min(group + GROUPS_AT_ONCE, groups);
        k.packed_product(part.packed.matrix(), group, end, x, rows, y, stride);
        add_deltas(site, part, group * PACKED_ROWS, end * PACKED_ROWS, y, stride);
    }
}

void head_inputs(ggml_tensor * dst, int thread, int threads, void * head_binding) {
    const auto &        binding = *static_cast<const HeadBinding *>(head_binding);
    const ggml_tensor * x       = dst->src[0];
    const int           rows    = static_cast<int>(x->ne[1]);
    quantize_rows(*binding.state, x, rows * thread / threads, rows * (thread + 1) / threads);
}

void packed_head(ggml_tensor * dst, int, int, void * head_binding) {
    const auto & binding = *static_cast<const HeadBinding *>(head_binding);
    const auto   x       = quantized(*binding.state, binding.matrix->in);
    const int    groups  = binding.matrix->out / PACKED_ROWS;
    for (int group = binding.next->fetch_add(HEAD_GROUPS_AT_ONCE); group < groups;
         group     = binding.next->fetch_add(HEAD_GROUPS_AT_ONCE)) {
        kernels().packed_product(*binding.matrix, group, std::min(group + HEAD_GROUPS_AT_ONCE, groups), x,
                                 static_cast<int>(dst->ne[1]), static_cast<float *>(dst->data), stride_of(dst));
    }
}

void attention(ggml_tensor * dst, int thread, int threads, void * attention_binding) {
    const auto &            binding = *static_cast<const AttentionBinding *>(attention_binding);
    StepState &             state   = *binding.state;
    const Hyperparameters & h       = *binding.h;
    const ggml_tensor *     q       = dst->src[0];  // [head_dim, heads, rows]
    const Kernels &         k       = kernels();
    const int               blocks  = static_cast<int>(state.blocks.size());
    // Query heads that share keys are best done together; with little else to share out, each goes alone.
    const bool fine   = blocks * h.kv_heads < 4 * threads;
    const int  group  = fine ? 1 : h.heads / h.kv_heads;
    const int  splits = h.heads / group;
    const int  items  = blocks * splits;
    auto &     next   = state.attention_next[binding.layer];
    for (int item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
        const RowBlock & rows = state.blocks[item / splits];
        const int        head = item % splits * group;
        AttentionBlock   block;
        block.q           = reinterpret_cast<const float *>(static_cast<const char *>(q->data) + rows.first * q->nb[2]);
        block.q_stride    = q->nb[2] / sizeof(float);
        block.out         = reinterpret_cast<float *>(static_cast<char *>(dst->data) + rows.first * dst->nb[1]);
        block.out_stride  = dst->nb[1] / sizeof(float);
        block.k           = state.cache->k(binding.layer)->data;
        block.v           = state.cache->v(binding.layer)->data;
        block.cache_f32   = state.cache->k(binding.layer)->type == GGML_TYPE_F32;
        block.cell_stride = static_cast<std::size_t>(h.kv_width());
        block.cells       = state.cache->cells_of(rows.sequence).data();
        block.positions   = state.positions.data() + rows.first;
        block.rows        = rows.count;
        block.head_first  = head;
        block.group       = group;
        block.kv_head     = head / (h.heads / h.kv_heads);
        block.head_dim    = h.head_dim;
        block.window      = binding.window;
        block.scale       = h.attention_scale;
        k.attention(block, state.scratch.data() + thread * state.scratch_stride);
    }
}

}  // namespace mf
