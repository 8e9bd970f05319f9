#include "packed.hpp"

#include <cstring>

namespace mf {

bool can_pack(ggml_type type, int64_t in, int64_t out) {
    return kernels().packed_product != nullptr && (type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q8_0) &&
           in % 32 == 0 && out % PACKED_ROWS == 0;
}

void Packed::allocate(ggml_type type, int in, int out) {
    matrix_.in         = in;
    matrix_.out        = out;
    matrix_.bits       = type == GGML_TYPE_Q8_0 ? 8 : 4;
    matrix_.zero       = type == GGML_TYPE_Q8_0 ? 128 : type == GGML_TYPE_Q4_0 ? 8 : 0;
    matrix_.has_offset = type == GGML_TYPE_Q4_1;
    bytes_.resize(matrix_.group_bytes() * (out / PACKED_ROWS));
    matrix_.data = bytes_.data();
}

void Packed::set_rows(ggml_type type, int first, int count, const uint8_t * rows) {
    // ggml's blocks: Q4_0 {d, 16 bytes}, Q4_1 {d, m, 16 bytes}, Q8_0 {d, 32 bytes}; d and m float16. Byte i of a 4-bit block
    // holds input i in its low nibble and input 16 + i in its high one, as in a packed record.
    const std::size_t header = type == GGML_TYPE_Q4_1 ? 4 : 2;
    const std::size_t quants = type == GGML_TYPE_Q8_0 ? 32 : 16;
    const int         blocks = matrix_.in / 32;
    for (int r = 0; r < count; ++r) {
        const int lane = (first + r) % PACKED_ROWS;
        for (int b = 0; b < blocks; ++b) {
            const uint8_t * from = rows + (static_cast<std::size_t>(r) * blocks + b) * (header + quants);
            uint8_t * record     = bytes_.data() + (first + r) / PACKED_ROWS * matrix_.group_bytes() + b * matrix_.record_bytes();
            for (std::size_t i = 0; i < quants; ++i) {
                const uint8_t value                   = from[header + i];
                record[i / 4 * 64 + lane * 4 + i % 4] = type == GGML_TYPE_Q8_0 ? static_cast<uint8_t>(value + 128U) : value;
            }
            std::memcpy(record + quants * PACKED_ROWS + lane * 2, from, 2);
            if (matrix_.has_offset) {
                std::memcpy(record + quants * PACKED_ROWS + 32 + lane * 2, from + 2, 2);
            }
        }
    }
}

}  // namespace mf
