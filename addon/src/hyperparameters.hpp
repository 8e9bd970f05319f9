// What a GGUF file says about its model, and what an architecture's file adds to it.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <string>
#include <vector>

namespace mf {

enum class Activation { silu, gelu };

struct Hyperparameters {
    std::string architecture;
    std::string name;
    int         layers          = 0;
    int         embedding       = 0;
    int         heads           = 0;
    int         kv_heads        = 0;
    int         head_dim        = 0;
    int         feed_forward    = 0;
    int         vocabulary      = 0;
    int         context_trained = 0;
    float       norm_epsilon    = 1e-5F;

    int               rope_mode       = GGML_ROPE_TYPE_NORMAL;
    int               rope_dimensions = 0;
    float             rope_base       = 10000.0F;
    float             rope_scale      = 1.0F;  // frequency scale
    float             attention_scale = 1.0F;
    bool              scales_queries  = false;  // the scale is applied to the queries, before the product with the keys
    Activation        activation      = Activation::silu;
    float             embedding_scale = 1.0F;
    float             final_softcap   = 0.0F;
    bool              rope_permuted   = false;  // q/k rows stored in RoPE-pair order (llama GGUF files)
    bool              qk_norm         = false;
    bool              post_norms      = false;  // norms after attention and after the feed-forward network (gemma)
    int               window          = 0;      // sliding window of the layers marked local
    float             rope_base_local = 10000.0F;
    std::vector<bool> local;  // per layer: uses the window and rope_base_local

    int kv_width() const { return kv_heads * head_dim; }
    int q_width() const { return heads * head_dim; }
};

// Reads `<architecture>.<key>` values; throws model_invalid with the key's name if one is missing or of another type.
class Metadata {
  public:
    explicit Metadata(const gguf_context * gguf);
    const std::string & architecture() const { return architecture_; }
    bool                has(const std::string & key) const;
    int                 integer(const std::string & key) const;
    int                 integer_or(const std::string & key, int otherwise) const;
    float               real(const std::string & key) const;
    float               real_or(const std::string & key, float otherwise) const;
    std::string         text_or(const std::string & key, const std::string & otherwise) const;
    std::vector<bool>   flags(const std::string & key) const;

  private:
    int64_t              find(const std::string & key) const;
    const gguf_context * gguf_;
    std::string          architecture_;
};

// Common to all, then the architecture's own file.
Hyperparameters read_hyperparameters(const gguf_context * gguf);

void describe_llama(const Metadata & metadata, Hyperparameters & h);
void describe_qwen2(const Metadata & metadata, Hyperparameters & h);
void describe_qwen3(const Metadata & metadata, Hyperparameters & h);
void describe_gemma3(const Metadata & metadata, Hyperparameters & h);

}  // namespace mf
