#include "adapter_image.hpp"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "kernels/kernels.hpp"

namespace mf {

static std::size_t width(HalfOrFloat type) { return type == HalfOrFloat::f32 ? 4 : 2; }

// Any float row to float32. `from` need not be aligned.
static void widen(const uint8_t * from, HalfOrFloat type, std::size_t n, std::vector<float> & to) {
    to.resize(n);
    if (type == HalfOrFloat::f32) {
        std::memcpy(to.data(), from, n * 4);
        return;
    }
    std::vector<uint16_t> halves(n);
    std::memcpy(halves.data(), from, n * 2);
    if (type == HalfOrFloat::f16) {
        ggml_fp16_to_fp32_row(halves.data(), to.data(), static_cast<int64_t>(n));
    } else {
        ggml_bf16_to_fp32_row(reinterpret_cast<const ggml_bf16_t *>(halves.data()), to.data(), static_cast<int64_t>(n));
    }
}

static void check_range(const std::vector<float> & values, const AdapterPair & pair) {
    // A value that is not a number fails every comparison, so it is found by not being within the range.
    bool good = true;
    for (const float v : values) {
        good &= std::fabs(v) <= 65504.0F;
    }
    require(good, "adapter_invalid",
            "layer " + std::to_string(pair.layer) +
                " of the adapter holds a value that is not a number or is beyond the range of float16");
}

// Row of GGUF's B that holds row `row` of PEFT's: rotate-half halves become neighbouring pairs within each head.
static int permuted_row(int row, int out, int heads) {
    const int head = out / heads;
    const int in   = row % head;
    return row - in + (in < head / 2 ? 2 * in : 2 * (in - head / 2) + 1);
}

std::vector<int> AdapterImage::shape_of(const Model & model) {
    std::vector<int> shape = { model.h().layers };
    for (int t = 0; t < TARGET_COUNT; ++t) {
        shape.push_back(model.target_in(static_cast<Target>(t)));
        shape.push_back(model.target_out(static_cast<Target>(t)));
    }
    return shape;
}

std::shared_ptr<const AdapterImage> AdapterImage::build(const Model & model, const uint8_t * file, std::size_t file_bytes,
                                                        std::vector<AdapterPair> pairs) {
    std::shared_ptr<AdapterImage> image(new AdapterImage());
    const int                     layers = model.h().layers;
    image->shape_                        = shape_of(model);
    image->sites_.resize(static_cast<std::size_t>(layers) * SITE_COUNT);
    std::sort(pairs.begin(), pairs.end(), [](const AdapterPair & x, const AdapterPair & y) {
        return x.layer != y.layer ? x.layer < y.layer : x.target < y.target;
    });

    // Where everything goes: stacked A's of a site side by side, then its B's.
    std::size_t total = 0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const AdapterPair & p = pairs[i];
        require(p.layer >= 0 && p.layer < layers && p.target >= 0 && p.target < TARGET_COUNT, "adapter_invalid",
                "the adapter names a layer that the base model does not have");
        require(p.rank > 0 && p.rank <= 4096 && std::isfinite(p.scale), "adapter_invalid",
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
        SiteWeights & site = image->sites_[static_cast<std::size_t>(p.layer) * SITE_COUNT + place_of(p.target).site];
        site.spans.push_back({ p.target, p.rank, site.rank, 0, 0 });
        site.rank += p.rank;
        image->rank_max_ = std::max(image->rank_max_, p.rank);
    }
    for (auto & site : image->sites_) {
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
    image->weights_.resize(total);

    std::vector<float> values;
    std::vector<float> transposed;
    const auto         narrow = [&](const std::vector<float> & from, std::size_t at) {
        kernels().to_half(from.data(), from.size(), image->weights_.data() + at);
    };
    for (const AdapterPair & p : pairs) {
        const std::size_t in   = model.target_in(p.target);
        const int         out  = model.target_out(p.target);
        const auto &      site = image->site(p.layer, place_of(p.target).site);
        const auto        span =
            std::find_if(site.spans.begin(), site.spans.end(), [&](const Span & s) { return s.target == p.target; });
        widen(file + p.a_offset, p.a_type, p.rank * in, values);
        check_range(values, p);
        narrow(values, span->a);
        widen(file + p.b_offset, p.b_type, static_cast<std::size_t>(p.rank) * out, values);
        transposed.resize(values.size());
        for (int row = 0; row < out; ++row) {
            const int to = p.permute_heads > 0 ? permuted_row(row, out, p.permute_heads) : row;
            for (int r = 0; r < p.rank; ++r) {
                transposed[static_cast<std::size_t>(r) * out + to] = values[static_cast<std::size_t>(row) * p.rank + r] * p.scale;
            }
        }
        check_range(transposed, p);
        narrow(transposed, span->bt);
    }
    return image;
}

}  // namespace mf
