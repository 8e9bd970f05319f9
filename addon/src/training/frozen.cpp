#include "frozen.hpp"

#include <gguf.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>

#include "../error.hpp"

namespace mf {

WeightFile::WeightFile(const std::string & path) {
    file_ = std::fopen(path.c_str(), "rb");
    require(file_ != nullptr, "model_invalid", "the base model's file " + path + " cannot be opened any more");
    gguf_init_params params = { true, &meta_ };
    gguf_                   = gguf_init_from_file(path.c_str(), params);
    if (gguf_ == nullptr) {
        std::fclose(file_);
        throw Error("model_invalid", "the base model's file " + path + " is not a readable GGUF file any more");
    }
}

WeightFile::~WeightFile() {
    gguf_free(gguf_);
    ggml_free(meta_);
    std::fclose(file_);
}

bool WeightFile::has(const std::string & name) const { return ggml_get_tensor(meta_, name.c_str()) != nullptr; }

const ggml_tensor * WeightFile::shape(const std::string & name) const {
    const ggml_tensor * tensor = ggml_get_tensor(meta_, name.c_str());
    require(tensor != nullptr, "model_invalid", "the base model's file lacks the tensor " + name);
    return tensor;
}

std::vector<float> WeightFile::read(const std::string & name) const {
    const ggml_tensor *  tensor = shape(name);
    const int64_t        id     = gguf_find_tensor(gguf_, name.c_str());
    std::vector<uint8_t> bytes(gguf_get_tensor_size(gguf_, id));
    const std::size_t    offset = gguf_get_data_offset(gguf_) + gguf_get_tensor_offset(gguf_, id);
#if defined(_WIN32)
    const bool placed = _fseeki64(file_, static_cast<int64_t>(offset), SEEK_SET) == 0;
#else
    const bool placed = fseeko(file_, static_cast<off_t>(offset), SEEK_SET) == 0;
#endif
    require(placed && std::fread(bytes.data(), 1, bytes.size(), file_) == bytes.size(), "model_invalid",
            "the base model's file ends before the tensor " + name);
    std::vector<float> floats(ggml_nelements(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        std::copy_n(reinterpret_cast<const float *>(bytes.data()), floats.size(), floats.data());
    } else {
        const auto * traits = ggml_get_type_traits(tensor->type);
        require(traits->to_float != nullptr, "architecture_unsupported",
                std::string("weights of type ") + ggml_type_name(tensor->type) + " cannot be trained against");
        traits->to_float(bytes.data(), floats.data(), static_cast<int64_t>(floats.size()));
    }
    return floats;
}

ggml_type Transposed::type_for(ggml_type base, int in) {
    if (base == GGML_TYPE_F32 || base == GGML_TYPE_F16 || base == GGML_TYPE_BF16) {
        return base;
    }
    return in % 32 == 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
}

std::size_t Transposed::bytes_for(const Model & model, ggml_type base, int in, int out) {
    const ggml_type type = type_for(base, in);
    return ggml_row_size(type, in) * out;
}

void Transposed::load(const Model & model, const WeightFile & file, const std::vector<std::string> & sources) {
    out                  = static_cast<int>(file.shape(sources[0])->ne[0]);
    const ggml_type base = file.shape(sources[0])->type;
    in                   = 0;
    for (const auto & source : sources) {
        in += static_cast<int>(file.shape(source)->ne[1]);
    }
    std::vector<float> turned(static_cast<std::size_t>(in) * out);
    int                first = 0;
    for (const auto & source : sources) {
        const auto    rows  = file.read(source);
        const int64_t count = file.shape(source)->ne[1];
        constexpr int BLOCK = 16;  // rows and columns at a time, so that both sides stay in the cache
        for (int64_t o0 = 0; o0 < count; o0 += BLOCK) {
            for (int i = 0; i < out; ++i) {
                for (int64_t o = o0; o < std::min<int64_t>(count, o0 + BLOCK); ++o) {
                    turned[static_cast<std::size_t>(i) * in + first + o] = rows[o * out + i];
                }
            }
        }
        first += static_cast<int>(count);
    }
    const ggml_type      type = type_for(base, in);
    const std::size_t    row  = ggml_row_size(type, in);
    std::vector<uint8_t> bytes(row * out);
    if (type == GGML_TYPE_F32) {
        std::copy_n(reinterpret_cast<const uint8_t *>(turned.data()), bytes.size(), bytes.data());
    } else {
        ggml_quantize_chunk(type, turned.data(), bytes.data(), 0, out, in, nullptr);
    }
    if (type == GGML_TYPE_Q8_0 && model.fused() && can_pack(type, in, out)) {
        packed_.allocate(type, in, out);
        packed_.set_rows(type, 0, out, bytes.data());
        bytes_ = packed_.bytes();
        return;
    }
    bool                   extra  = false;
    const auto             buft   = model.backend().product_buffer_type(type, in, out, &extra);
    const ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
    context_                      = ggml_init(params);
    weight_                       = ggml_new_tensor_2d(context_, type, in, out);
    buffer_                       = ggml_backend_alloc_ctx_tensors_from_buft(context_, buft);
    require(buffer_ != nullptr, "out_of_memory", "the transposed weights do not fit into memory");
    ggml_backend_buffer_set_usage(buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(weight_, bytes.data(), 0, bytes.size());
    bytes_ = ggml_backend_buffer_get_size(buffer_);
}

Transposed::~Transposed() {
    if (context_ != nullptr) {
        ggml_backend_buffer_free(buffer_);
        ggml_free(context_);
    }
}

static std::vector<std::string> sources_of(int layer, SiteId id) {
    static const char * const NAMES[] = { "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down" };
    std::vector<std::string>  names;
    for (int i = 0; i < targets_in(id); ++i) {
        names.push_back("blk." + std::to_string(layer) + "." + NAMES[target_at(id, i)] + ".weight");
    }
    return names;
}

static std::string head_of(const WeightFile & file) { return file.has("output.weight") ? "output.weight" : "token_embd.weight"; }

std::shared_ptr<TransposedModel> TransposedModel::open(const std::shared_ptr<Model> & model, const std::string & path) {
    static std::mutex                                              guard;
    static std::map<const Model *, std::weak_ptr<TransposedModel>> known;
    const std::lock_guard<std::mutex>                              lock(guard);
    for (auto it = known.begin(); it != known.end();) {
        it = it->second.expired() ? known.erase(it) : std::next(it);
    }
    if (auto found = known[model.get()].lock()) {
        return found;
    }
    // The model is kept alive by whoever holds the copies (Trainer), so its address is not used again meanwhile.
    auto             made = std::make_shared<TransposedModel>();
    const WeightFile file(path);
    for (int layer = 0; layer < model->h().layers; ++layer) {
        for (int id = 0; id < SITE_COUNT; ++id) {
            made->sites_.push_back(std::make_unique<Transposed>());
            made->sites_.back()->load(*model, file, sources_of(layer, static_cast<SiteId>(id)));
        }
    }
    made->head_.load(*model, file, { head_of(file) });
    known[model.get()] = made;
    return made;
}

std::size_t TransposedModel::bytes() const {
    std::size_t total = head_.bytes();
    for (const auto & site : sites_) {
        total += site->bytes();
    }
    return total;
}

std::size_t TransposedModel::bytes_for(const Model & model, const std::string & path) {
    const WeightFile file(path);
    const auto       bytes = [&](const std::vector<std::string> & sources) {
        int in = 0;
        for (const auto & source : sources) {
            in += static_cast<int>(file.shape(source)->ne[1]);
        }
        return Transposed::bytes_for(model, file.shape(sources[0])->type, in, static_cast<int>(file.shape(sources[0])->ne[0]));
    };
    std::size_t total = bytes({ head_of(file) });
    for (int layer = 0; layer < model.h().layers; ++layer) {
        for (int id = 0; id < SITE_COUNT; ++id) {
            total += bytes(sources_of(layer, static_cast<SiteId>(id)));
        }
    }
    return total;
}

}  // namespace mf
