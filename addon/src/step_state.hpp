// What the custom operations of one step need to know about its rows. Rebuilt by the engine before each graph.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "adapter_image.hpp"
#include "kv_cache.hpp"

namespace mf {

// Consecutive rows under the same adapter.
struct Segment {
    int                  first;
    int                  count;
    const AdapterImage * image;
};

// Up to ATTENTION_ROWS_MAX consecutive rows of one sequence.
struct RowBlock {
    int first;
    int count;
    int sequence;
};

struct StepState {
    explicit StepState(int layers)
        : attention_next(layers), product_next(static_cast<std::size_t>(layers) * SITE_COUNT * 3 + 1) {}

    std::vector<Segment>  segments;         // over all rows
    std::vector<Segment>  output_segments;  // over the output rows (last layer's second half)
    std::vector<RowBlock> blocks;
    std::vector<int32_t>  positions;
    const KvCache *       cache = nullptr;

    std::vector<float> u;  // [rows][u_stride]: low-rank activations of the site under way
    std::size_t        u_stride = 0;
    std::vector<float> sums;  // [rows][in / 32]
    std::size_t        sums_stride = 0;
    // The input of the site under way, rounded for packed products.
    std::vector<int8_t>  quants;
    std::vector<float>   quant_scales;
    std::vector<float>   quant_sums;
    std::vector<int32_t> quant_counts;

    std::vector<float> scratch;  // attention, per thread
    std::size_t        scratch_stride = 0;

    std::vector<std::atomic<int>> attention_next;  // work counters, one per layer
    std::vector<std::atomic<int>> product_next;    // one per part of every site, then the head's

    // Splits rows into segments by image.
    static void segment(const std::vector<const AdapterImage *> & images, std::vector<Segment> & out);
};

}  // namespace mf
