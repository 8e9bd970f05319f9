// Qwen2, Qwen2.5, R1-Distill-Qwen: as llama, with biases on q, k and v and rotate-half RoPE.
#include "../hyperparameters.hpp"

namespace mf {

void describe_qwen2(const Metadata &, Hyperparameters & h) { h.rope_mode = GGML_ROPE_TYPE_NEOX; }

}  // namespace mf
