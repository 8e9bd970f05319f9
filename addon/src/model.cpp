#include "model.hpp"

#include <map>
#include <mutex>

#include "error.hpp"
#include "model_loader.hpp"

namespace mf {

TargetPlace place_of(Target target) {
    switch (target) {
        case ATTN_Q:
            return { SITE_QKV, 0 };
        case ATTN_K:
            return { SITE_QKV, 1 };
        case ATTN_V:
            return { SITE_QKV, 2 };
        case ATTN_OUTPUT:
            return { SITE_ATTN_OUTPUT, 0 };
        case FFN_GATE:
            return { SITE_GATE_UP, 0 };
        case FFN_UP:
            return { SITE_GATE_UP, 1 };
        default:
            return { SITE_DOWN, 0 };
    }
}

int targets_in(SiteId site) { return site == SITE_QKV ? 3 : site == SITE_GATE_UP ? 2 : 1; }

Target target_at(SiteId site, int index) {
    static const int first[SITE_COUNT] = { ATTN_Q, ATTN_OUTPUT, FFN_GATE, FFN_DOWN };
    return static_cast<Target>(first[site] + index);
}

bool Site::corrected() const {
    for (const auto & part : parts) {
        if (!part.correction.empty()) {
            return true;
        }
    }
    return false;
}

bool Site::packed() const {
    for (const auto & part : parts) {
        if (!part.packed.empty()) {
            return true;
        }
    }
    return false;
}

int Model::target_in(Target target) const {
    switch (target) {
        case ATTN_OUTPUT:
            return h_.q_width();
        case FFN_DOWN:
            return h_.feed_forward;
        default:
            return h_.embedding;
    }
}

int Model::target_out(Target target) const {
    switch (target) {
        case ATTN_Q:
            return h_.q_width();
        case ATTN_K:
        case ATTN_V:
            return h_.kv_width();
        case FFN_GATE:
        case FFN_UP:
            return h_.feed_forward;
        default:
            return h_.embedding;
    }
}

std::shared_ptr<Model> Model::open(const std::string & path, const std::string & device_choice, int threads, bool exact) {
    static std::mutex                                  guard;
    static std::map<std::string, std::weak_ptr<Model>> open_models;
    const std::lock_guard<std::mutex>                  lock(guard);
    const Device                                       device = choose_device(device_choice);
    auto &                                             entry  = open_models[device.name + (exact ? " exact\n" : "\n") + path];
    if (auto existing = entry.lock()) {
        return existing;
    }
    std::shared_ptr<Model> model(new Model());
    model->exact_   = exact;
    model->backend_ = std::make_unique<Backend>(device, threads);
    ModelLoader(*model, path).load();
    entry = model;
    return model;
}

Model::~Model() {
    for (ggml_backend_buffer_t buffer : buffers_) {
        ggml_backend_buffer_free(buffer);
    }
    for (ggml_context * context : contexts_) {
        ggml_free(context);
    }
}

}  // namespace mf
