// Products with the base weights on the CPU, and the small operations around them.
#pragma once

#include <algorithm>
#include <vector>

#include "model.hpp"
#include "team.hpp"

namespace mf {

// An input rounded to 8 bits for packed products, and its block sums for corrected ones. Grows as needed.
struct RoundedRows {
    std::vector<int8_t>  quants;
    std::vector<float>   scales;
    std::vector<float>   sums;
    std::vector<int32_t> counts;
    int                  in = 0;

    void          resize(int rows, int width);
    void          round(const float * x, std::size_t stride, int first, int last);
    QuantizedRows view() const { return { quants.data(), scales.data(), sums.data(), counts.data(), in }; }
    std::size_t   bytes() const { return quants.size() + (scales.size() + sums.size() + counts.size()) * 4; }
};

// Outputs of all targets of a site side by side, in the order of its parts.
struct SiteShape {
    int in        = 0;
    int out       = 0;
    int offset[3] = { 0, 0, 0 };  // of each target, by its index within the site
    int width[3]  = { 0, 0, 0 };
};
SiteShape shape_of(const Site & site);

// y [rows, out] = W x for a packed matrix, x already rounded. `done(first, last)` is called for a range of output columns when
// they are computed, to add what belongs to them while they are in the cache; `done_work`: of one row and column of it.
template <typename F>
void product_packed(Session & session, const PackedMatrix & matrix, const RoundedRows & x, int rows, float * y,
                    std::size_t y_stride, int groups_at_once, double done_work, F && done) {
    const int    groups = matrix.out / PACKED_ROWS;
    const double work   = (matrix.in + done_work) * rows * PACKED_ROWS * groups_at_once;
    session.items((groups + groups_at_once - 1) / groups_at_once, work, [&](int item, int) {
        const int group = item * groups_at_once;
        const int end   = std::min(group + groups_at_once, groups);
        kernels().packed_product(matrix, group, end, x.view(), rows, y, y_stride);
        done(group * PACKED_ROWS, end * PACKED_ROWS);
    });
}
// 64 columns keep two threads out of one cache line; the head has many more.
inline constexpr int GROUPS_AT_ONCE      = 4;
inline constexpr int HEAD_GROUPS_AT_ONCE = 64;

// y [rows, out] (contiguous) = W x through ggml.
void product_ggml(Session & session, Backend & backend, ggml_tensor * weight, const float * x, int rows, float * y);

// y = x r w with r = 1 / sqrt(mean(x²) + epsilon).
void rms_norm(const float * x, const float * w, int n, float epsilon, float * y);

inline const float * floats_of(const ggml_tensor * t) { return static_cast<const float *>(t->data); }

// Row `token` of the embedding as float32, scaled as the model wants it.
void embed_token(const Model & model, int32_t token, float * to);

// Rotary position embedding: one table of angles per step, for global or for local layers.
class Rotation {
  public:
    void set(Session & session, const Model & model, bool local, const int32_t * positions, int rows);
    // Turns one head of a row, or turns it back.
    void apply(float * head, int row, bool back = false) const;

  private:
    int                half_  = 0;
    bool               pairs_ = false;  // neighbours are turned together; else i and i + half
    std::vector<float> cos_;            // [rows][half]
    std::vector<float> sin_;
};

}  // namespace mf
