#include "kv_cache.hpp"

#include "error.hpp"
#include "memory.hpp"

namespace mf {

KvCache::KvCache(const Model & model, int cells, int sequences, ggml_type type) : sequences_(sequences), references_(cells, 0) {
    const auto &           h      = model.h();
    const ggml_init_params params = { ggml_tensor_overhead() * (2 * static_cast<std::size_t>(h.layers) + 1), nullptr, true };
    context_                      = ggml_init(params);
    for (int layer = 0; layer < h.layers; ++layer) {
        k_.push_back(ggml_new_tensor_2d(context_, type, h.kv_width(), cells));
        v_.push_back(ggml_new_tensor_2d(context_, type, h.kv_width(), cells));
    }
    buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(context_, model.backend().buffer_type());
    if (buffer_ == nullptr) {
        ggml_free(context_);
        throw Error("out_of_memory", "a key/value cache of " + std::to_string(cells) + " cells does not fit into memory");
    }
    // Cells that were never written are read under a mask on GPUs; zero times a mask stays zero.
    if (!ggml_backend_buffer_is_host(buffer_) ||
        !zero_untouched(ggml_backend_buffer_get_base(buffer_), ggml_backend_buffer_get_size(buffer_))) {
        ggml_backend_buffer_clear(buffer_, 0);
    }
    for (int32_t cell = 0; cell < cells; ++cell) {
        free_.insert(free_.end(), cell);
    }
}

KvCache::~KvCache() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
}

int KvCache::cells_high() const {
    for (int cell = cells() - 1; cell >= 0; --cell) {
        if (references_[cell] > 0) {
            return cell + 1;
        }
    }
    return 0;
}

int32_t KvCache::append(int sequence) {
    const int32_t cell = *free_.begin();
    sequences_[sequence].push_back(cell);  // first, as it alone may fail
    free_.erase(free_.begin());
    references_[cell] = 1;
    return cell;
}

void KvCache::trim(int sequence, int length) {
    auto & cells = sequences_[sequence];
    while (static_cast<int>(cells.size()) > length) {
        if (--references_[cells.back()] == 0) {
            free_.insert(cells.back());
        }
        cells.pop_back();
    }
}

void KvCache::share(int source, int destination, int length) {
    auto & from = sequences_[source];
    auto & to   = sequences_[destination];
    for (int i = 0; i < length; ++i) {
        ++references_[from[i]];
        to.push_back(from[i]);
    }
}

}  // namespace mf
