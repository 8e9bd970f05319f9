#include "loss.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "block.hpp"

namespace mf {

static constexpr int ROWS_AT_ONCE = 32;

Head::Head(const Model & model, const TransposedModel * transposed) : model_(model), h_(model.h()), transposed_(transposed) {}

void Head::run(Session & session, const float * x, std::vector<RowLoss> & rows, float * dx, double divisor) {
    const int     d    = h_.embedding;
    const int     v    = h_.vocabulary;
    const float   cap  = h_.final_softcap;
    const float * norm = static_cast<const float *>(model_.output_norm->data);
    const auto &  k    = kernels();
    normed_.resize(static_cast<std::size_t>(ROWS_AT_ONCE) * d);
    logits_.resize(static_cast<std::size_t>(ROWS_AT_ONCE) * v);
    d_normed_.resize(static_cast<std::size_t>(ROWS_AT_ONCE) * d);
    const bool packed      = !model_.packed_output.empty();
    const bool packed_back = dx != nullptr && transposed_->head().packed();
    for (std::size_t begin = 0; begin < rows.size(); begin += ROWS_AT_ONCE) {
        const int count = static_cast<int>(std::min<std::size_t>(ROWS_AT_ONCE, rows.size() - begin));
        RowLoss * chunk = rows.data() + begin;
        rounded_.resize(count, d);
        session.rows(count, 1, ELEMENT_MACS * d, [&](int first, int last) {
            for (int i = first; i < last; ++i) {
                rms_norm(x + static_cast<std::size_t>(chunk[i].row) * d, norm, d, h_.norm_epsilon,
                         normed_.data() + static_cast<std::size_t>(i) * d);
            }
            if (packed) {
                rounded_.round(normed_.data(), d, first, last);
            }
        });
        if (packed) {
            product_packed(session, model_.packed_output.matrix(), rounded_, count, logits_.data(), v, HEAD_GROUPS_AT_ONCE, 0,
                           [](int, int) {});
        } else {
            product_ggml(session, model_.backend(), model_.output, normed_.data(), count, logits_.data());
        }
        if (packed_back) {
            rounded_.resize(count, v);
        }
        session.rows(count, 1, ELEMENT_MACS * v, [&](int first, int last) {
            std::vector<float> slope;
            for (int i = first; i < last; ++i) {
                float * logits = logits_.data() + static_cast<std::size_t>(i) * v;
                if (cap > 0) {
                    slope.resize(v);
                    for (int j = 0; j < v; ++j) {
                        const float t = std::tanh(logits[j] / cap);
                        logits[j]     = cap * t;
                        slope[j]      = 1.0F - t * t;
                    }
                }
                RowLoss &    row  = chunk[i];
                float        top  = 0;
                const int    best = k.argmax(logits, v, &top);
                const double sum  = k.exp_sum(logits, v, top, 1.0F);
                row.loss          = top + std::log(sum) - logits[row.target];
                row.correct       = best == row.target;
                if (dx == nullptr) {
                    continue;
                }
                const auto factor = static_cast<float>(row.weight / divisor);
                k.scaled_exp(logits, v, top, static_cast<float>(factor / sum));
                logits[row.target] -= factor;
                for (int j = 0; cap > 0 && j < v; ++j) {
                    logits[j] *= slope[j];
                }
            }
            if (packed_back) {
                rounded_.round(logits_.data(), v, first, last);
            }
        });
        if (dx == nullptr) {
            continue;
        }
        if (packed_back) {
            product_packed(session, transposed_->head().matrix().matrix(), rounded_, count, d_normed_.data(), d, GROUPS_AT_ONCE,
                           0, [](int, int) {});
        } else {
            product_ggml(session, model_.backend(), transposed_->head().weight(), logits_.data(), count, d_normed_.data());
        }
        session.rows(count, 1, ELEMENT_MACS * d, [&](int first, int last) {
            for (int i = first; i < last; ++i) {
                rms_norm_back(x + static_cast<std::size_t>(chunk[i].row) * d, norm,
                              d_normed_.data() + static_cast<std::size_t>(i) * d, d, h_.norm_epsilon,
                              dx + static_cast<std::size_t>(chunk[i].row) * d);
            }
        });
    }
}

std::size_t Head::bytes() const { return rounded_.bytes() + normed_.bytes() + logits_.bytes() + d_normed_.bytes(); }

std::size_t Head::bytes_for(const Model & model) {
    return static_cast<std::size_t>(ROWS_AT_ONCE) * (model.h().vocabulary * 5 + model.h().embedding * 9);
}

}  // namespace mf
