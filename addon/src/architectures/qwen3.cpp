// Qwen3 (dense): as qwen2 without biases, with an RMSNorm on each query and key head.
#include "../hyperparameters.hpp"

namespace mf {

void describe_qwen3(const Metadata &, Hyperparameters & h) {
    h.rope_mode = GGML_ROPE_TYPE_NEOX;
    h.qk_norm   = true;
}

}  // namespace mf
