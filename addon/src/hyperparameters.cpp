#include "hyperparameters.hpp"

#include <cmath>
#include <map>

#include "error.hpp"

namespace mf {

Metadata::Metadata(const gguf_context * gguf) : gguf_(gguf) {
    const int64_t id = gguf_find_key(gguf, "general.architecture");
    require(id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING, "model_invalid",
            "the GGUF file does not name its architecture (general.architecture)");
    architecture_ = gguf_get_val_str(gguf, id);
}

int64_t Metadata::find(const std::string & key) const {
    const std::string full = key.rfind("general.", 0) == 0 || key.rfind("tokenizer.", 0) == 0 ? key : architecture_ + "." + key;
    return gguf_find_key(gguf_, full.c_str());
}

bool Metadata::has(const std::string & key) const { return find(key) >= 0; }

int Metadata::integer(const std::string & key) const {
    const int64_t id = find(key);
    require(id >= 0, "model_invalid", "the GGUF file lacks " + architecture_ + "." + key);
    int64_t value = -1;
    switch (gguf_get_kv_type(gguf_, id)) {
        case GGUF_TYPE_UINT32:
            value = gguf_get_val_u32(gguf_, id);
            break;
        case GGUF_TYPE_INT32:
            value = gguf_get_val_i32(gguf_, id);
            break;
        case GGUF_TYPE_UINT64:
            value = static_cast<int64_t>(gguf_get_val_u64(gguf_, id));
            break;
        case GGUF_TYPE_UINT16:
            value = gguf_get_val_u16(gguf_, id);
            break;
        default:
            throw Error(
                "architecture_unsupported",
                architecture_ + "." + key + " is not a single integer; models whose layers differ in it are not supported");
    }
    require(value >= 0 && value <= (int64_t{ 1 } << 30), "model_invalid", architecture_ + "." + key + " is out of range");
    return static_cast<int>(value);
}

int Metadata::integer_or(const std::string & key, int otherwise) const { return has(key) ? integer(key) : otherwise; }

float Metadata::real(const std::string & key) const {
    const int64_t id = find(key);
    require(id >= 0 && gguf_get_kv_type(gguf_, id) == GGUF_TYPE_FLOAT32, "model_invalid",
            "the GGUF file lacks " + architecture_ + "." + key + " as float32");
    const float value = gguf_get_val_f32(gguf_, id);
    require(std::isfinite(value), "model_invalid", architecture_ + "." + key + " is not a finite number");
    return value;
}

float Metadata::real_or(const std::string & key, float otherwise) const { return has(key) ? real(key) : otherwise; }

std::string Metadata::text_or(const std::string & key, const std::string & otherwise) const {
    const int64_t id = find(key);
    return id >= 0 && gguf_get_kv_type(gguf_, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf_, id) : otherwise;
}

std::vector<bool> Metadata::flags(const std::string & key) const {
    const int64_t     id = find(key);
    std::vector<bool> out;
    if (id >= 0 && gguf_get_kv_type(gguf_, id) == GGUF_TYPE_ARRAY && gguf_get_arr_type(gguf_, id) == GGUF_TYPE_BOOL) {
        const auto * data = static_cast<const int8_t *>(gguf_get_arr_data(gguf_, id));
        for (std::size_t i = 0; i < gguf_get_arr_n(gguf_, id); ++i) {
            out.push_back(data[i] != 0);
        }
    }
    return out;
}

Hyperparameters read_hyperparameters(const gguf_context * gguf) {
    using Describe                                             = void (*)(const Metadata &, Hyperparameters &);
    static const std::map<std::string, Describe> architectures = {
        { "llama", describe_llama },
        { "qwen2", describe_qwen2 },
        { "qwen3", describe_qwen3 },
        { "gemma3", describe_gemma3 },
    };
    const Metadata metadata(gguf);
    const auto     describe = architectures.find(metadata.architecture());
    require(describe != architectures.end(), "architecture_unsupported",
            "the architecture '" + metadata.architecture() + "' is not supported; supported are llama, qwen2, qwen3 and gemma3");
    require(metadata.integer_or("expert_count", 0) == 0, "architecture_unsupported",
            "mixture-of-experts models are not supported");

    Hyperparameters h;
    h.architecture    = metadata.architecture();
    h.name            = metadata.text_or("general.name", h.architecture);
    h.layers          = metadata.integer("block_count");
    h.embedding       = metadata.integer("embedding_length");
    h.heads           = metadata.integer("attention.head_count");
    h.kv_heads        = metadata.integer_or("attention.head_count_kv", h.heads);
    h.feed_forward    = metadata.integer("feed_forward_length");
    h.context_trained = metadata.integer("context_length");
    h.norm_epsilon    = metadata.real("attention.layer_norm_rms_epsilon");
    require(h.layers > 0 && h.layers <= 1024 && h.heads > 0 && h.kv_heads > 0 && h.heads % h.kv_heads == 0 && h.heads <= 4096 &&
                h.embedding > 0 && h.embedding <= (1 << 18) && h.feed_forward > 0 && h.feed_forward <= (1 << 20) &&
                h.context_trained > 0 && h.norm_epsilon >= 0,
            "model_invalid", "the GGUF file's layer, head or width counts make no sense");
    h.head_dim = metadata.integer_or("attention.key_length", h.embedding / h.heads);
    require(metadata.integer_or("attention.value_length", h.head_dim) == h.head_dim, "architecture_unsupported",
            "models whose key and value heads differ in size are not supported");
    require(h.head_dim > 0 && h.head_dim % 16 == 0 && h.head_dim <= 512, "architecture_unsupported",
            "head sizes must be a multiple of 16 up to 512, this model has " + std::to_string(h.head_dim));
    h.rope_dimensions = metadata.integer_or("rope.dimension_count", h.head_dim);
    require(h.rope_dimensions > 0 && h.rope_dimensions <= h.head_dim && h.rope_dimensions % 2 == 0, "model_invalid",
            "rope.dimension_count makes no sense");
    h.rope_base = metadata.real_or("rope.freq_base", 10000.0F);
    // As libllama reads them: a factor without a type is linear, and none or zero is no scaling.
    const std::string scale = metadata.text_or("rope.scaling.type", "linear");
    if (scale == "linear") {
        const float factor = metadata.real_or("rope.scaling.factor", metadata.real_or("rope.scale_linear", 0.0F));
        h.rope_scale       = factor > 0 ? 1.0F / factor : 1.0F;
    } else {
        require(scale == "none", "architecture_unsupported", "RoPE scaling of type '" + scale + "' is not supported");
    }
    h.attention_scale = 1.0F / std::sqrt(static_cast<float>(h.head_dim));
    h.local.assign(h.layers, false);
    describe->second(metadata, h);
    return h;
}

}  // namespace mf
