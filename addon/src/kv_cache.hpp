// Key/value cache: one cell holds one position of one sequence, or of several that share a prefix. Cells of a sequence
// lie anywhere, so nothing ever has to be moved.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "model.hpp"

namespace mf {

class KvCache {
  public:
    KvCache(const Model & model, int cells, int sequences, ggml_type type);
    ~KvCache();
    KvCache(const KvCache &)             = delete;
    KvCache & operator=(const KvCache &) = delete;

    int cells() const { return static_cast<int>(references_.size()); }
    int cells_free() const { return static_cast<int>(free_.size()); }
    int sequences() const { return static_cast<int>(sequences_.size()); }
    // One past the highest cell in use.
    int cells_high() const;

    int                          length(int sequence) const { return static_cast<int>(sequences_[sequence].size()); }
    const std::vector<int32_t> & cells_of(int sequence) const { return sequences_[sequence]; }

    // Takes a free cell for the sequence's next position.
    int32_t append(int sequence);
    void    trim(int sequence, int length);
    void    share(int source, int destination, int length);

    // [kv_width, cells]
    ggml_tensor * k(int layer) const { return k_[layer]; }
    ggml_tensor * v(int layer) const { return v_[layer]; }

  private:
    std::vector<std::vector<int32_t>> sequences_;
    std::vector<int32_t>              references_;
    std::set<int32_t>                 free_;  // lowest first keeps the used part of the cache dense
    ggml_context *                    context_ = nullptr;
    ggml_backend_buffer_t             buffer_  = nullptr;
    std::vector<ggml_tensor *>        k_;
    std::vector<ggml_tensor *>        v_;
};

}  // namespace mf
