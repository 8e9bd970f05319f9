// Gemma 3 (text): norms around both blocks, GeGLU, scaled embeddings, and five local layers to each global one.
#include <cmath>

#include "../hyperparameters.hpp"

namespace mf {

void describe_gemma3(const Metadata & metadata, Hyperparameters & h) {
    h.rope_mode       = GGML_ROPE_TYPE_NEOX;
    h.qk_norm         = true;
    h.post_norms      = true;
    h.activation      = Activation::gelu;
    h.scales_queries  = true;
    h.embedding_scale = std::sqrt(static_cast<float>(h.embedding));
    h.final_softcap   = metadata.real_or("final_logit_softcapping", 0.0F);
    if (h.layers == 62) {  // the 27B model scales by the width per head instead of the head size
        h.attention_scale = 1.0F / std::sqrt(static_cast<float>(h.embedding) / static_cast<float>(h.heads));
    }
    h.window          = metadata.integer_or("attention.sliding_window", 0);
    h.rope_base_local = metadata.real_or("rope.freq_base_swa", 10000.0F);
    if (h.window > 0) {
        const auto flags   = metadata.flags("attention.sliding_window_pattern");
        const int  pattern = flags.empty() ? metadata.integer_or("attention.sliding_window_pattern", 6) : 0;
        for (int layer = 0; layer < h.layers; ++layer) {
            h.local[layer] = flags.empty() ? pattern == 0 || layer % pattern < pattern - 1
                                           : layer < static_cast<int>(flags.size()) && flags[layer];
        }
    }
}

}  // namespace mf
