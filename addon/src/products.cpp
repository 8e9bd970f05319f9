#include "products.hpp"

#include <cmath>
#include <cstring>

namespace mf {

void RoundedRows::resize(int rows, int width) {
    in                       = width;
    const std::size_t blocks = static_cast<std::size_t>(rows) * ((width + 31) / 32);
    if (scales.size() < blocks) {
        quants.resize(blocks * 32);
        scales.resize(blocks);
        sums.resize(blocks);
        counts.resize(blocks);
    }
}

void RoundedRows::round(const float * x, std::size_t stride, int first, int last) {
    const std::size_t blocks = in / 32;
    for (int row = first; row < last; ++row) {
        kernels().quantize(x + row * stride, in, quants.data() + row * blocks * 32, scales.data() + row * blocks,
                           sums.data() + row * blocks, counts.data() + row * blocks);
    }
}

SiteShape shape_of(const Site & site) {
    SiteShape shape;
    shape.in = site.in;
    for (const auto & part : site.parts) {
        for (const auto & span : part.spans) {
            const int index     = place_of(span.target).index;
            shape.offset[index] = shape.out + span.offset;
            shape.width[index]  = span.out;
        }
        shape.out += part.out;
    }
    return shape;
}

static int rows_at_once(int rows, int64_t in, int64_t out) {
    const double fit = OPERATION_MACS / (static_cast<double>(in) * static_cast<double>(out));
    return static_cast<int>(std::clamp<double>(fit - static_cast<int>(fit) % 8, 8, rows));
}

void product_ggml(Session & session, Backend & backend, ggml_tensor * weight, const float * x, int rows, float * y) {
    const int64_t in    = weight->ne[0];
    const int64_t out   = weight->ne[1];
    const int     limit = rows_at_once(rows, in, out);
    for (int first = 0; first < rows; first += limit) {
        session.breathe();
        const int              count  = std::min(limit, rows - first);
        const ggml_init_params params = { ggml_tensor_overhead() * 4 + ggml_graph_overhead_custom(8, false), nullptr, true };
        ggml_context *         ctx    = ggml_init(params);
        ggml_tensor *          input  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, in, count);
        input->data                   = const_cast<float *>(x + first * in);
        ggml_tensor * result          = ggml_mul_mat(ctx, weight, input);
        result->data                  = y + first * out;
        ggml_cgraph * graph           = ggml_new_graph_custom(ctx, 8, false);
        ggml_build_forward_expand(graph, result);
        try {
            backend.compute_held(graph);
        } catch (...) {
            ggml_free(ctx);
            throw;
        }
        ggml_free(ctx);
    }
}

void rms_norm(const float * x, const float * w, int n, float epsilon, float * y) {
    const float r = 1.0F / std::sqrt(kernels().dot(x, x, n) / static_cast<float>(n) + epsilon);
    for (int i = 0; i < n; ++i) {
        y[i] = x[i] * r * w[i];
    }
}

void embed_token(const Model & model, int32_t token, float * to) {
    const ggml_tensor * table = model.token_embedding;
    const auto *        from  = static_cast<const char *>(table->data) + token * table->nb[1];
    const int           d     = model.h().embedding;
    if (table->type == GGML_TYPE_F32) {
        std::memcpy(to, from, sizeof(float) * d);
    } else {
        ggml_get_type_traits(table->type)->to_float(from, to, d);
    }
    for (int i = 0; model.h().embedding_scale != 1.0F && i < d; ++i) {
        to[i] *= model.h().embedding_scale;
    }
}

void Rotation::set(Session & session, const Model & model, bool local, const int32_t * positions, int rows) {
    const auto &  h       = model.h();
    const float * factors = model.rope_factors != nullptr ? floats_of(model.rope_factors) : nullptr;
    const double  base    = local ? h.rope_base_local : h.rope_base;
    const double  scale   = local ? 1.0 : h.rope_scale;
    half_                 = h.rope_dimensions / 2;
    pairs_                = h.rope_mode == GGML_ROPE_TYPE_NORMAL;
    cos_.resize(static_cast<std::size_t>(rows) * half_);
    sin_.resize(cos_.size());
    std::vector<double> frequencies(half_);
    for (int i = 0; i < half_; ++i) {
        frequencies[i] = std::pow(base, -2.0 * i / h.rope_dimensions) * scale / (factors != nullptr ? factors[i] : 1.0F);
    }
    session.rows(rows, 16, 8 * ELEMENT_MACS * half_, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            for (int i = 0; i < half_; ++i) {
                const double angle                              = positions[row] * frequencies[i];
                cos_[static_cast<std::size_t>(row) * half_ + i] = static_cast<float>(std::cos(angle));
                sin_[static_cast<std::size_t>(row) * half_ + i] = static_cast<float>(std::sin(angle));
            }
        }
    });
}

void Rotation::apply(float * head, int row, bool back) const {
    const float * c = cos_.data() + static_cast<std::size_t>(row) * half_;
    const float * s = sin_.data() + static_cast<std::size_t>(row) * half_;
    for (int i = 0; i < half_; ++i) {
        float &     a    = head[pairs_ ? 2 * i : i];
        float &     b    = head[pairs_ ? 2 * i + 1 : i + half_];
        const float sine = back ? -s[i] : s[i];
        const float a0   = a;
        a                = a0 * c[i] - b * sine;
        b                = a0 * sine + b * c[i];
    }
}

}  // namespace mf
