// Picks the next token from logits: bias and penalties, temperature, top-k, top-p, min-p, a seeded draw, and a grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "vocabulary.hpp"

namespace mf {

struct TokenProbability {
    int32_t token;
    float   logprob;
};

struct SamplerOptions {
    float                                  temperature       = 1.0F;
    int                                    top_k             = 0;
    float                                  top_p             = 1.0F;
    float                                  min_p             = 0.0F;
    float                                  repeat_penalty    = 1.0F;
    float                                  frequency_penalty = 0.0F;
    float                                  presence_penalty  = 0.0F;
    int                                    penalty_last      = 64;
    std::vector<std::pair<int32_t, float>> logit_bias;
    uint32_t                               seed         = 0;
    int                                    top_logprobs = -1;
    bool                                   ignore_eos   = false;
    std::string                            grammar;
    bool                                   grammar_lazy = false;
    std::vector<GrammarTrigger>            grammar_triggers;
    std::string                            grammar_prefill;
};

struct Choice {
    int32_t                       token   = -1;
    float                         logprob = 0.0F;
    std::vector<TokenProbability> top;
    std::string                   error;  // why no token could be chosen; the other rows of the step are not affected
};

class Sampler {
  public:
    Sampler(std::shared_ptr<const Vocabulary> vocabulary, SamplerOptions options);
    ~Sampler();
    Sampler(const Sampler &)             = delete;
    Sampler & operator=(const Sampler &) = delete;

    // Counts prompt tokens for the repetition penalty.
    void accept_prompt(const int32_t * tokens, std::size_t count);

    // `logits` is changed in place (bias, penalties).
    Choice sample(float * logits);

  private:
    void    remember(int32_t token);
    void    adjust(float * logits) const;
    int32_t pick(const float * logits);
    int32_t pick_among(std::vector<TokenProbability> & candidates);
    int32_t pick_with_grammar(float * logits);
    double  draw();

    std::shared_ptr<const Vocabulary> vocabulary_;
    SamplerOptions                    options_;
    int                               size_;
    std::mt19937                      random_;
    std::vector<int32_t>              recent_;
    std::unordered_map<int32_t, int>  generated_;
    llama_sampler *                   grammar_      = nullptr;
    bool                              grammar_dead_ = false;  // it accepted a token that nothing in it continues
};

}  // namespace mf
