#include "exact_adapter.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "adapter_image.hpp"
#include "error.hpp"

namespace mf {

static ggml_type type_of(HalfOrFloat type) {
    return type == HalfOrFloat::f32 ? GGML_TYPE_F32 : type == HalfOrFloat::f16 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
}

// All bits of the exponent set: infinite, or not a number.
static bool all_finite(const uint8_t * bytes, std::size_t count, HalfOrFloat type) {
    bool finite = true;
    if (type == HalfOrFloat::f32) {
        for (std::size_t i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, bytes + i * 4, 4);
            finite = finite && (bits & 0x7f800000U) != 0x7f800000U;
        }
        return finite;
    }
    const uint32_t exponent = type == HalfOrFloat::f16 ? 0x7c00U : 0x7f80U;
    for (std::size_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + i * 2, 2);
        finite = finite && (bits & exponent) != exponent;
    }
    return finite;
}

// libllama keeps the types of a GGUF. Other files it cannot read; llama.cpp's converter makes float32 of them.
static bool keeps_types(AdapterSource & source) { return source.bytes() >= 4 && std::memcmp(source.read(0, 4), "GGUF", 4) == 0; }

// Row by row, `place` says where each goes.
template <typename F>
static void fill(ggml_tensor * to, AdapterSource & source, std::size_t offset, HalfOrFloat type, int layer, F && place) {
    const auto            width = static_cast<std::size_t>(to->ne[0]);
    const std::size_t     bytes = width * (type == HalfOrFloat::f32 ? 4 : 2);
    std::vector<uint16_t> halves(to->type == type_of(type) ? 0 : width);
    std::vector<float>    floats(halves.size());
    for (int64_t row = 0; row < to->ne[1]; ++row) {
        const uint8_t * from = source.read(offset + row * bytes, bytes);
        require(all_finite(from, width, type), "adapter_invalid",
                "layer " + std::to_string(layer) + " of the adapter holds a value that is not a number");
        const void * values = from;
        if (!halves.empty()) {
            std::memcpy(halves.data(), from, bytes);  // it may lie at an odd address
            if (type == HalfOrFloat::f16) {
                ggml_fp16_to_fp32_row(halves.data(), floats.data(), to->ne[0]);
            } else {
                ggml_bf16_to_fp32_row(reinterpret_cast<const ggml_bf16_t *>(halves.data()), floats.data(), to->ne[0]);
            }
            values = floats.data();
        }
        ggml_backend_tensor_set(to, values, place(static_cast<int>(row)) * to->nb[1], to->nb[1]);
    }
}

std::unique_ptr<const ExactAdapter> ExactAdapter::build(const Model & model, AdapterSource & source,
                                                        const std::vector<AdapterPair> & pairs) {
    std::unique_ptr<ExactAdapter> adapter(new ExactAdapter());
    adapter->pairs_.resize(static_cast<std::size_t>(model.h().layers) * TARGET_COUNT);
    if (pairs.empty()) {
        return adapter;
    }
    const ggml_init_params params = { ggml_tensor_overhead() * (2 * pairs.size() + 1), nullptr, true };
    adapter->context_             = ggml_init(params);
    const bool as_in_file         = keeps_types(source);
    const auto type               = [&](HalfOrFloat of) {
        return as_in_file ? type_of(of) : GGML_TYPE_F32;
    };
    for (const AdapterPair & p : pairs) {
        Pair & pair = adapter->pairs_[static_cast<std::size_t>(p.layer) * TARGET_COUNT + p.target];
        pair.a      = ggml_new_tensor_2d(adapter->context_, type(p.a_type), model.target_in(p.target), p.rank);
        pair.b      = ggml_new_tensor_2d(adapter->context_, type(p.b_type), p.rank, model.target_out(p.target));
        pair.scale  = p.scale;
    }
    // Where libllama puts them, too: never into the memory of repacked weights.
    adapter->buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(adapter->context_, model.backend().buffer_type());
    require(adapter->buffer_ != nullptr, "out_of_memory", "the adapter does not fit into memory");

    // In the order of the file, which is then read once from front to back.
    struct Half {
        const AdapterPair * pair;
        bool                is_b;
        std::size_t         from;
    };
    std::vector<Half> halves;
    for (const AdapterPair & p : pairs) {
        halves.push_back({ &p, false, p.a_offset });
        halves.push_back({ &p, true, p.b_offset });
    }
    std::sort(halves.begin(), halves.end(), [](const Half & x, const Half & y) { return x.from < y.from; });
    for (const Half & half : halves) {
        const AdapterPair & p    = *half.pair;
        const Pair &        pair = adapter->pair(p.layer, p.target);
        if (half.is_b) {
            const int out = model.target_out(p.target);
            fill(pair.b, source, p.b_offset, p.b_type, p.layer, [&](int row) {
                return static_cast<std::size_t>(p.permute_heads == 0 ? row : permuted_row(row, out, p.permute_heads));
            });
        } else {
            fill(pair.a, source, p.a_offset, p.a_type, p.layer, [](int row) { return static_cast<std::size_t>(row); });
        }
    }
    return adapter;
}

ExactAdapter::~ExactAdapter() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
}

}  // namespace mf
