#include "parameters.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../error.hpp"

namespace mf {

uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27U)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31U);
}

Parameters::Parameters(const Model & model, const TrainerOptions & options) {
    place(model, options);
    for (auto * array : { &values_, &gradients_, &first_, &second_ }) {
        array->resize(size_);
        std::memset(array->data(), 0, size_ * sizeof(float));
    }
    initialise(model, options);
}

void Parameters::place(const Model & model, const TrainerOptions & options) {
    const auto take = [&](std::size_t count) {
        const std::size_t at = size_;
        size_ += (count + 15) / 16 * 16;
        trained_ += count;
        return at;
    };
    sites_.resize(static_cast<std::size_t>(model.h().layers) * SITE_COUNT);
    for (int layer = 0; layer < model.h().layers; ++layer) {
        if (options.prefix) {
            const std::size_t count = static_cast<std::size_t>(options.prefix_tokens) * model.h().kv_width();
            prefixes_.push_back({ take(count), take(count) });
            continue;
        }
        for (int id = 0; id < SITE_COUNT; ++id) {
            auto & site = sites_[static_cast<std::size_t>(layer) * SITE_COUNT + id];
            for (int index = 0; index < targets_in(static_cast<SiteId>(id)); ++index) {
                const Target target = target_at(static_cast<SiteId>(id), index);
                if (options.targets[target]) {
                    site.pairs[index] = { true, site.ranks, 0, model.target_out(target) };
                    site.ranks += options.rank;
                }
            }
            if (site.ranks > 0) {
                site.a = take(static_cast<std::size_t>(site.ranks) * model.layers[layer].sites[id].in);
                for (auto & pair : site.pairs) {
                    if (pair.trained) {
                        pair.bt = take(static_cast<std::size_t>(options.rank) * pair.out);
                    }
                }
            }
            ranks_max_ = std::max(ranks_max_, site.ranks);
        }
    }
}

// A uniform in ±1/√in (PEFT's Kaiming initialisation with a = √5), B = 0. A prefix small and normal.
void Parameters::initialise(const Model & model, const TrainerOptions & options) {
    const uint64_t key  = mix(options.seed);
    const auto     draw = [&](std::size_t at) {
        return unit(mix(key + at));
    };
    for (int layer = 0; layer < model.h().layers; ++layer) {
        if (options.prefix) {
            const std::size_t count = static_cast<std::size_t>(options.prefix_tokens) * model.h().kv_width();
            for (const std::size_t first : { prefix(layer).k, prefix(layer).v }) {
                for (std::size_t i = first; i < first + count; ++i) {
                    // Box-Muller with the second number left unused.
                    const float r     = std::sqrt(-2.0F * std::log(1.0F - draw(2 * i)));
                    values_.data()[i] = 0.02F * r * std::cos(6.283185307F * draw(2 * i + 1));
                }
            }
            continue;
        }
        for (int id = 0; id < SITE_COUNT; ++id) {
            const auto & pairs = site(layer, static_cast<SiteId>(id));
            const int    in    = model.layers[layer].sites[id].in;
            const float  bound = 1.0F / std::sqrt(static_cast<float>(in));
            for (std::size_t i = pairs.a; i < pairs.a + static_cast<std::size_t>(pairs.ranks) * in; ++i) {
                values_.data()[i] = (2.0F * draw(i) - 1.0F) * bound;
            }
        }
    }
}

// Sums run over pieces of this many numbers, so that the norm does not depend on the number of threads.
static constexpr std::size_t PIECE = 8192;

Parameters::Update Parameters::update(Session & session, const UpdateOptions & o) {
    const int           pieces = static_cast<int>((size_ + PIECE - 1) / PIECE);
    std::vector<double> squares(pieces, 0.0);
    const float *       g = gradients_.data();
    session.items(pieces, ELEMENT_MACS / 4 * PIECE, [&](int piece, int) {
        double total = 0;
        for (std::size_t i = piece * PIECE; i < std::min(size_, (piece + 1) * PIECE); ++i) {
            const double gi = g[i] / GRADIENT_SCALE;
            total += gi * gi;
        }
        squares[piece] = total;
    });
    double total = 0;
    for (const double s : squares) {
        total += s;
    }
    const Update result = { std::sqrt(total), std::isfinite(total) };
    if (result.applied) {
        ++steps_;
        const auto  t       = static_cast<double>(steps_);
        const float clip    = o.clip_norm > 0 ? static_cast<float>(std::min(1.0, o.clip_norm / (result.norm + 1e-6))) : 1.0F;
        const auto  beta1   = static_cast<float>(o.beta1);
        const auto  beta2   = static_cast<float>(o.beta2);
        const auto  decay   = static_cast<float>(1.0 - o.learning_rate * o.weight_decay);
        const auto  rate    = static_cast<float>(o.learning_rate / (1.0 - std::pow(o.beta1, t)));
        const auto  inverse = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, t)));
        const auto  epsilon = static_cast<float>(o.epsilon);
        session.items(pieces, ELEMENT_MACS * PIECE, [&](int piece, int) {
            float * p = values_.data();
            float * m = first_.data();
            float * v = second_.data();
            for (std::size_t i = piece * PIECE; i < std::min(size_, (piece + 1) * PIECE); ++i) {
                const float gi = g[i] / GRADIENT_SCALE * clip;
                m[i]           = beta1 * m[i] + (1.0F - beta1) * gi;
                v[i]           = beta2 * v[i] + (1.0F - beta2) * gi * gi;
                p[i]           = p[i] * decay - rate * m[i] / (std::sqrt(v[i]) * inverse + epsilon);
            }
        });
    }
    session.items(pieces, ELEMENT_MACS / 4 * PIECE, [&](int piece, int) {
        const std::size_t first = piece * PIECE;
        std::memset(gradients_.data() + first, 0, (std::min(size_, first + PIECE) - first) * sizeof(float));
    });
    return result;
}

void Parameters::write(std::vector<uint8_t> & out) const {
    const auto append = [&](const void * data, std::size_t bytes) {
        const auto * from = static_cast<const uint8_t *>(data);
        out.insert(out.end(), from, from + bytes);
    };
    const uint64_t size = size_;
    append(&size, 8);
    append(&steps_, 8);
    for (const auto * array : { &values_, &first_, &second_ }) {
        append(array->data(), size_ * sizeof(float));
    }
}

std::size_t Parameters::read(const uint8_t * from, std::size_t bytes) {
    const std::size_t needed = 16 + 3 * size_ * sizeof(float);
    uint64_t          size   = 0;
    if (bytes >= 16) {
        std::memcpy(&size, from, 8);
    }
    require(size == size_ && bytes >= needed, "argument_invalid",
            "the snapshot was made by a trainer of another shape, or is cut short");
    std::memcpy(&steps_, from + 8, 8);
    const uint8_t * at = from + 16;
    for (auto * array : { &values_, &first_, &second_ }) {
        std::memcpy(array->data(), at, size_ * sizeof(float));
        at += size_ * sizeof(float);
    }
    std::memset(gradients_.data(), 0, size_ * sizeof(float));
    return needed;
}

}  // namespace mf
