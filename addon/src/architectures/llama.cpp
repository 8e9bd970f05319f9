// Llama 1-3, Mistral, DeepSeek-LLM/Coder, R1-Distill-Llama, SmolLM: RMSNorm, grouped-query attention, SwiGLU.
#include "../hyperparameters.hpp"

namespace mf {

void describe_llama(const Metadata &, Hyperparameters & h) {
    h.rope_mode     = GGML_ROPE_TYPE_NORMAL;
    h.rope_permuted = true;
}

}  // namespace mf
