#include "adapter_image.hpp"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "kernels/kernels.hpp"

namespace mf {

static std::size_t width(HalfOrFloat type) { return type == HalfOrFloat::f32 ? 4 : 2; }

// Values converted at a time: they stay in the first-level cache. At least one row of B at the highest rank.
static constexpr std::size_t CHUNK    = 4096;
static constexpr int         RANK_MAX = 4096;

int permuted_row(int row, int out, int heads) {
    const int head = out / heads;
    const int in   = row % head;
    return row - in + (in < head / 2 ? 2 * in : 2 * (in - head / 2) + 1);
}

namespace {

// One matrix of a pair on its way from the file into the image.
struct Move {
    const AdapterPair * pair;
    bool                is_b;
    std::size_t         from;  // bytes in the file
    std::size_t         to;    // halves in the image
};

class Converter {
  public:
    Converter(AdapterSource & source, uint16_t * weights) : source_(source), weights_(weights) {}

    // [rank][in] stays as it lies.
    void a(const Move & move, std::size_t in) {
        const std::size_t count = move.pair->rank * in;
        for (std::size_t i = 0; i < count; i += CHUNK) {
            const std::size_t n = std::min(CHUNK, count - i);
            widen(move.from + i * width(move.pair->a_type), move.pair->a_type, n);
            check_range(n, *move.pair);
            kernels().to_half(values_, n, weights_ + move.to + i);
        }
    }

    // [out][rank] becomes [rank][out], scaled, in the order of rows that the base has.
    void b(const Move & move, int out) {
        const AdapterPair & pair  = *move.pair;
        const auto          rank  = static_cast<std::size_t>(pair.rank);
        const int           block = static_cast<int>(CHUNK / rank);
        for (int first = 0; first < out; first += block) {
            const int         rows = std::min(block, out - first);
            const std::size_t n    = rows * rank;
            widen(move.from + first * rank * width(pair.b_type), pair.b_type, n);
            for (std::size_t i = 0; i < n; ++i) {
                values_[i] *= pair.scale;
            }
            check_range(n, pair);
            kernels().to_half(values_, n, halves_);
            if (pair.permute_heads == 0) {
                for (std::size_t r = 0; r < rank; ++r) {
                    uint16_t * to = weights_ + move.to + r * out + first;
                    for (int row = 0; row < rows; ++row) {
                        to[row] = halves_[row * rank + r];
                    }
                }
                continue;
            }
            for (int row = 0; row < rows; ++row) {
                uint16_t * to = weights_ + move.to + permuted_row(first + row, out, pair.permute_heads);
                for (std::size_t r = 0; r < rank; ++r) {
                    to[r * out] = halves_[row * rank + r];
                }
            }
        }
    }

  private:
    // Any float row to float32, in values_.
    void widen(std::size_t offset, HalfOrFloat type, std::size_t n) {
        const uint8_t * from = source_.read(offset, n * width(type));
        if (type == HalfOrFloat::f32) {
            std::memcpy(values_, from, n * 4);
            return;
        }
        std::memcpy(halves_, from, n * 2);
        if (type == HalfOrFloat::f16) {
            ggml_fp16_to_fp32_row(halves_, values_, static_cast<int64_t>(n));
        } else {
            ggml_bf16_to_fp32_row(reinterpret_cast<const ggml_bf16_t *>(halves_), values_, static_cast<int64_t>(n));
        }
    }

    void check_range(std::size_t n, const AdapterPair & pair) const {
        // Without their signs, floats are ordered as their bits are, and what is no number lies above all numbers.
        int32_t worst = 0;
        for (std::size_t i = 0; i < n; ++i) {
            int32_t bits;
            std::memcpy(&bits, &values_[i], 4);
            worst = std::max(worst, bits & 0x7fffffff);
        }
        require(worst <= 0x477fe000, "adapter_invalid",  // 65504
                "layer " + std::to_string(pair.layer) +
                    " of the adapter holds a value that is not a number or is beyond the range of float16");
    }

    AdapterSource & source_;
    uint16_t *      weights_;
    float           values_[CHUNK];
    uint16_t        halves_[CHUNK];
};

}  // namespace

std::vector<int> AdapterImage::shape_of(const Model & model) {
    std::vector<int> shape = { model.h().layers, model.exact_adapters() ? 1 : 0 };
    for (int t = 0; t < TARGET_COUNT; ++t) {
        shape.push_back(model.target_in(static_cast<Target>(t)));
        shape.push_back(model.target_out(static_cast<Target>(t)));
    }
    return shape;
}

// Checks the pairs and decides where everything goes: stacked A's of a site side by side, then its B's. Returns the halves
// needed.
std::size_t AdapterImage::lay_out(const Model & model, std::size_t file_bytes, std::vector<AdapterPair> & pairs) {
    const int layers = model.h().layers;
    shape_           = shape_of(model);
    sites_.resize(static_cast<std::size_t>(layers) * SITE_COUNT);
    std::sort(pairs.begin(), pairs.end(), [](const AdapterPair & x, const AdapterPair & y) {
        return x.layer != y.layer ? x.layer < y.layer : x.target < y.target;
    });
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const AdapterPair & p = pairs[i];
        require(p.layer >= 0 && p.layer < layers && p.target >= 0 && p.target < TARGET_COUNT, "adapter_invalid",
                "the adapter names a layer that the base model does not have");
        require(p.rank > 0 && p.rank <= RANK_MAX && std::isfinite(p.scale), "adapter_invalid",
                "an adapter rank or scale is out of range");
        require(i == 0 || p.layer != pairs[i - 1].layer || p.target != pairs[i - 1].target, "adapter_invalid",
                "the adapter names the same layer twice");
        const auto fits = [&](std::size_t offset, HalfOrFloat type, std::size_t n) {
            return offset <= file_bytes && n * width(type) <= file_bytes - offset;
        };
        const std::size_t in  = model.target_in(p.target);
        const std::size_t out = model.target_out(p.target);
        require(fits(p.a_offset, p.a_type, p.rank * in) && fits(p.b_offset, p.b_type, p.rank * out), "adapter_invalid",
                "the adapter file is shorter than its header says");
        require(p.permute_heads >= 0 && (p.permute_heads == 0 || (out % p.permute_heads == 0 && out / p.permute_heads % 2 == 0)),
                "adapter_invalid", "an adapter's head count does not divide its width");
        SiteWeights & site = sites_[static_cast<std::size_t>(p.layer) * SITE_COUNT + place_of(p.target).site];
        site.spans.push_back({ p.target, p.rank, site.rank, 0, 0 });
        site.rank += p.rank;
        rank_max_ = std::max(rank_max_, p.rank);
    }
    std::size_t total = 0;
    for (auto & site : sites_) {
        site.a = total;
        for (auto & span : site.spans) {
            span.a = total;
            total += static_cast<std::size_t>(span.rank) * model.target_in(span.target);
        }
        for (auto & span : site.spans) {
            span.bt = total;
            total += static_cast<std::size_t>(span.rank) * model.target_out(span.target);
        }
    }
    return total;
}

std::shared_ptr<const AdapterImage> AdapterImage::build(const Model & model, AdapterSource & source,
                                                        std::vector<AdapterPair> pairs) {
    std::shared_ptr<AdapterImage> image(new AdapterImage());
    const std::size_t             halves = image->lay_out(model, source.bytes(), pairs);
    if (model.exact_adapters()) {
        image->exact_ = ExactAdapter::build(model, source, pairs);
        return image;
    }
    image->weights_ = ImageMemory(halves);

    // In the order of the file, which is then read once from front to back.
    std::vector<Move> moves;
    for (const AdapterPair & p : pairs) {
        const auto & spans = image->site(p.layer, place_of(p.target).site).spans;
        const auto   span  = std::find_if(spans.begin(), spans.end(), [&](const Span & s) { return s.target == p.target; });
        moves.push_back({ &p, false, p.a_offset, span->a });
        moves.push_back({ &p, true, p.b_offset, span->bt });
    }
    std::sort(moves.begin(), moves.end(), [](const Move & x, const Move & y) { return x.from < y.from; });
    const auto converter = std::make_unique<Converter>(source, image->weights_.data());
    for (const Move & move : moves) {
        if (move.is_b) {
            converter->b(move, model.target_out(move.pair->target));
        } else {
            converter->a(move, model.target_in(move.pair->target));
        }
    }
    return image;
}

}  // namespace mf
