#include "model_loader.hpp"

#include <algorithm>
#include <cstring>

#include "error.hpp"

namespace mf {

static const char * TARGET_NAMES[TARGET_COUNT] = {
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
};

ModelLoader::ModelLoader(Model & model, const std::string & path) : model_(model) {
    file_ = std::fopen(path.c_str(), "rb");
    require(file_ != nullptr, "model_invalid", "the model file " + path + " cannot be opened");
    const gguf_init_params params = { /*.no_alloc =*/true, /*.ctx =*/&meta_ };
    gguf_                         = gguf_init_from_file(path.c_str(), params);
    if (gguf_ == nullptr) {
        std::fclose(file_);
        throw Error("model_invalid", "the model file " + path + " is not a readable GGUF file");
    }
}

ModelLoader::~ModelLoader() {
    gguf_free(gguf_);
    ggml_free(meta_);
    std::fclose(file_);
}

ggml_tensor * ModelLoader::file_tensor(const std::string & name, bool required) const {
    ggml_tensor * tensor = ggml_get_tensor(meta_, name.c_str());
    require(tensor != nullptr || !required, "model_invalid", "the model file lacks the tensor " + name);
    return tensor;
}

// ggml's CPU says that it supports a product with any type, and aborts or jumps to nowhere with integers, float64, and the
// two formats that only activations are rounded to.
static bool computable(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           (ggml_is_quantized(type) && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K);
}

ggml_tensor * ModelLoader::declare(ggml_backend_buffer_type_t type, const std::vector<std::string> & sources, bool split,
                                   Part * part) {
    auto & ctx = contexts_[type];
    if (ctx == nullptr) {
        const ggml_init_params params = { ggml_tensor_overhead() * (64 + 24 * static_cast<std::size_t>(model_.h().layers)),
                                          nullptr, true };
        ctx                           = ggml_init(params);
        model_.contexts_.push_back(ctx);
    }
    const ggml_tensor * first = file_tensor(sources[0], true);
    require(computable(first->type), "architecture_unsupported",
            "the tensor " + sources[0] + " is of type " + ggml_type_name(first->type) + ", which cannot be computed with");
    int64_t rows = 0;
    for (const auto & source : sources) {
        rows += file_tensor(source, true)->ne[1];
        used_[source] = true;
    }
    const bool    vector = sources.size() == 1 && first->ne[1] == 1;
    const auto    kind   = split ? GGML_TYPE_Q4_0 : first->type;
    ggml_tensor * tensor =
        vector ? ggml_new_tensor_1d(ctx, kind, first->ne[0]) : ggml_new_tensor_2d(ctx, kind, first->ne[0], rows);
    ggml_set_name(tensor, sources[0].c_str());
    pending_.push_back({ tensor, sources, split, part });
    return tensor;
}

ggml_tensor * ModelLoader::norm(const std::string & name, int width) {
    const ggml_tensor * tensor = file_tensor(name, true);
    require(tensor->type == GGML_TYPE_F32 && ggml_nelements(tensor) == width && tensor->ne[0] == width, "model_invalid",
            "the tensor " + name + " must be a float32 vector of width " + std::to_string(width));
    return declare(model_.backend().buffer_type(), { name }, false, nullptr);
}

void ModelLoader::declare_site(Site & site, SiteId id, int layer) {
    const bool stack = model_.fused();
    site.in          = model_.target_in(target_at(id, 0));
    const auto name  = [&](int index, const char * kind) {
        return "blk." + std::to_string(layer) + "." + TARGET_NAMES[target_at(id, index)] + "." + kind;
    };
    const int count = targets_in(id);
    for (int index = 0; index < count;) {
        const ggml_tensor * first = file_tensor(name(index, "weight"), true);
        const bool          bias  = file_tensor(name(index, "bias"), false) != nullptr;
        int                 next  = index + 1;
        while (stack && next < count && file_tensor(name(next, "weight"), true)->type == first->type &&
               (file_tensor(name(next, "bias"), false) != nullptr) == bias) {
            ++next;
        }
        Part                     part;
        std::vector<std::string> weights;
        for (int i = index; i < next; ++i) {
            const Target        target = target_at(id, i);
            const ggml_tensor * w      = file_tensor(name(i, "weight"), true);
            require(ggml_n_dims(w) == 2 && w->ne[0] == site.in && w->ne[1] == model_.target_out(target), "model_invalid",
                    "the tensor " + name(i, "weight") + " has not the shape that the model's widths ask for");
            part.spans.push_back({ target, part.out, static_cast<int>(w->ne[1]) });
            part.out += static_cast<int>(w->ne[1]);
            weights.push_back(name(i, "weight"));
        }
        site.parts.push_back(std::move(part));
        Part & placed = site.parts.back();
        if (model_.fused() && can_pack(first->type, site.in, placed.out)) {
            pack(placed.packed, weights, site.in, placed.out);
        } else {
            place(placed, weights, site.in);
        }
        if (bias) {
            std::vector<std::string> biases;
            for (int i = index; i < next; ++i) {
                const ggml_tensor * b = file_tensor(name(i, "bias"), true);
                require(b->type == GGML_TYPE_F32 && ggml_nelements(b) == model_.target_out(target_at(id, i)), "model_invalid",
                        "the tensor " + name(i, "bias") + " must be a float32 vector of its layer's width");
                biases.push_back(name(i, "bias"));
            }
            auto & ctx  = contexts_[model_.backend().buffer_type()];
            placed.bias = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, placed.out);
            for (const auto & b : biases) {
                used_[b] = true;
            }
            pending_.push_back({ placed.bias, biases, false, nullptr });
        }
        index = next;
    }
}

// A matrix for ggml's own products, in the fastest layout it offers.
void ModelLoader::place(Part & part, const std::vector<std::string> & sources, int in) {
    const ggml_type type   = file_tensor(sources[0], true)->type;
    bool            extra  = false;
    bool            split  = false;
    auto            buffer = model_.backend().product_buffer_type(type, in, part.out, &extra);
    if (type == GGML_TYPE_Q4_1 && model_.fused()) {
        bool       repacked = false;
        const auto better   = model_.backend().product_buffer_type(GGML_TYPE_Q4_0, in, part.out, &repacked);
        if (repacked) {
            split  = true;
            buffer = better;
        }
    }
    part.weight = declare(buffer, sources, split, &part);
}

void ModelLoader::pack(Packed & packed, const std::vector<std::string> & sources, int in, int out) {
    const ggml_type type = file_tensor(sources[0], true)->type;
    packed.allocate(type, in, out);
    for (const auto & source : sources) {
        used_[source] = true;
    }
    pending_packs_.push_back({ &packed, type, sources });
    model_.weight_bytes_ += packed.bytes();
}

void ModelLoader::fill(const PendingPack & pending) {
    std::vector<uint8_t> bytes;
    int                  row = 0;
    for (const auto & source : pending.sources) {
        read(source, bytes);
        const ggml_tensor * tensor = file_tensor(source, true);
        const auto          rows   = static_cast<int>(tensor->ne[1]);
        require(bytes.size() == ggml_row_size(pending.type, tensor->ne[0]) * rows, "model_invalid",
                "the tensor " + source + " has not the size its shape asks for");
        pending.packed->set_rows(pending.type, row, rows, bytes.data());
        row += rows;
    }
}

void ModelLoader::declare_layer(int index) {
    Layer &           layer  = model_.layers[index];
    const auto &      h      = model_.h();
    const std::string prefix = "blk." + std::to_string(index) + ".";
    layer.attn_norm          = norm(prefix + "attn_norm.weight", h.embedding);
    layer.ffn_norm           = norm(prefix + "ffn_norm.weight", h.embedding);
    if (h.qk_norm) {
        layer.q_norm = norm(prefix + "attn_q_norm.weight", h.head_dim);
        layer.k_norm = norm(prefix + "attn_k_norm.weight", h.head_dim);
    }
    if (h.post_norms) {
        layer.attn_post_norm = norm(prefix + "post_attention_norm.weight", h.embedding);
        layer.ffn_post_norm  = norm(prefix + "post_ffw_norm.weight", h.embedding);
    }
    for (int site = 0; site < SITE_COUNT; ++site) {
        layer.sites[site].parts.reserve(3);  // Pending keeps pointers to the parts
        declare_site(layer.sites[site], static_cast<SiteId>(site), index);
    }
}

void ModelLoader::read(const std::string & name, std::vector<uint8_t> & bytes) {
    const int64_t     id     = gguf_find_tensor(gguf_, name.c_str());
    const std::size_t offset = gguf_get_data_offset(gguf_) + gguf_get_tensor_offset(gguf_, id);
    bytes.resize(gguf_get_tensor_size(gguf_, id));
#if defined(_WIN32)
    const bool placed = _fseeki64(file_, static_cast<int64_t>(offset), SEEK_SET) == 0;
#else
    const bool placed = fseeko(file_, static_cast<off_t>(offset), SEEK_SET) == 0;
#endif
    require(placed && std::fread(bytes.data(), 1, bytes.size(), file_) == bytes.size(), "model_invalid",
            "the model file ends before the tensor " + name);
}

// ggml's blocks of 32: Q4_1 {f16 d, f16 m, 16 bytes}, Q4_0 {f16 d, 16 bytes}, the same order of nibbles.
static void split_q4_1(const std::vector<uint8_t> & from, int64_t in, int64_t row_first, int64_t rows, int64_t out,
                       uint8_t * q4_0, float * correction) {
    const int64_t blocks = in / 32;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t b = 0; b < blocks; ++b) {
            const uint8_t * source = from.data() + (row * blocks + b) * 20;
            uint8_t *       target = q4_0 + (row * blocks + b) * 18;
            ggml_fp16_t     d;
            ggml_fp16_t     m;
            std::memcpy(&d, source, 2);
            std::memcpy(&m, source + 2, 2);
            std::memcpy(target, source, 2);
            std::memcpy(target + 2, source + 4, 16);
            correction[b * out + row_first + row] = ggml_fp16_to_fp32(m) + 8.0F * ggml_fp16_to_fp32(d);
        }
    }
}

void ModelLoader::fill(const Pending & pending) {
    std::vector<uint8_t> all;
    std::vector<uint8_t> bytes;
    const int64_t        in  = pending.tensor->ne[0];
    int64_t              row = 0;
    if (pending.split) {
        pending.part->correction.resize(in / 32 * pending.part->out);
        all.resize(ggml_nbytes(pending.tensor));
    }
    for (const auto & source : pending.sources) {
        read(source, bytes);
        if (pending.split) {
            const int64_t rows = file_tensor(source, true)->ne[1];
            split_q4_1(bytes, in, row, rows, pending.part->out, all.data() + row * (in / 32) * 18,
                       pending.part->correction.data());
            row += rows;
        } else {
            all.insert(all.end(), bytes.begin(), bytes.end());
        }
    }
    require(all.size() == ggml_nbytes(pending.tensor), "model_invalid",
            "the tensor " + pending.sources[0] + " has not the size its shape asks for");
    ggml_backend_tensor_set(pending.tensor, all.data(), 0, all.size());
    if (pending.split) {
        model_.weight_bytes_ += pending.part->correction.size() * sizeof(float);
    }
}

void ModelLoader::refuse_unused() const {
    for (ggml_tensor * t = ggml_get_first_tensor(meta_); t != nullptr; t = ggml_get_next_tensor(meta_, t)) {
        require(used_.count(t->name) > 0, "architecture_unsupported",
                std::string("the model has a tensor '") + t->name + "' that this version does not know how to compute with");
    }
}

void ModelLoader::load() {
    model_.h_      = read_hyperparameters(gguf_);
    const auto & h = model_.h_;

    const ggml_tensor * embedding = file_tensor("token_embd.weight", true);
    require(
        ggml_n_dims(embedding) == 2 && embedding->ne[0] == h.embedding && embedding->ne[1] > 0 && embedding->ne[1] <= (1 << 24),
        "model_invalid", "token_embd.weight has not the shape that the model's widths ask for");
    model_.h_.vocabulary = static_cast<int>(embedding->ne[1]);
    model_.layers.resize(h.layers);

    model_.token_embedding     = declare(model_.backend().buffer_type(), { "token_embd.weight" }, false, nullptr);
    model_.output_norm         = norm("output_norm.weight", h.embedding);
    const bool          tied   = file_tensor("output.weight", false) == nullptr;
    const std::string   head   = tied ? "token_embd.weight" : "output.weight";
    const ggml_tensor * source = file_tensor(head, true);
    require(source->ne[0] == h.embedding && source->ne[1] == h.vocabulary, "model_invalid",
            "output.weight has not the shape that the model's widths ask for");
    if (model_.fused() && can_pack(source->type, h.embedding, h.vocabulary)) {
        pack(model_.packed_output, { head }, h.embedding, h.vocabulary);
    } else {
        bool       extra  = false;
        const auto buffer = model_.backend().product_buffer_type(source->type, h.embedding, h.vocabulary, &extra);
        model_.output     = tied && !extra ? model_.token_embedding : declare(buffer, { head }, false, nullptr);
    }
    if (const ggml_tensor * factors = file_tensor("rope_freqs.weight", false)) {
        require(factors->type == GGML_TYPE_F32 && factors->ne[0] == h.rope_dimensions / 2, "model_invalid",
                "rope_freqs.weight must hold half of the rotated dimensions as float32");
        model_.rope_factors = declare(model_.backend().buffer_type(), { "rope_freqs.weight" }, false, nullptr);
    }
    for (int layer = 0; layer < h.layers; ++layer) {
        declare_layer(layer);
    }
    refuse_unused();

    for (const auto & [type, ctx] : contexts_) {
        ggml_backend_buffer_t buffer_of_type = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
        require(buffer_of_type != nullptr, "out_of_memory",
                "the model's weights do not fit into the memory of " + model_.backend().device().name);
        ggml_backend_buffer_set_usage(buffer_of_type, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        model_.buffers_.push_back(buffer_of_type);
        model_.weight_bytes_ += ggml_backend_buffer_get_size(buffer_of_type);
    }
    for (const auto & pending : pending_) {
        fill(pending);
    }
    for (const auto & pending : pending_packs_) {
        fill(pending);
    }
}

}  // namespace mf
