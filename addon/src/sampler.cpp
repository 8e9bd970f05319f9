#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.hpp"
#include "kernels/kernels.hpp"

namespace mf {

static constexpr float NEVER = -std::numeric_limits<float>::infinity();
// Below this a temperature is greedy: dividing logits by it would leave the range of float32.
static constexpr float TEMPERATURE_MIN = 1e-6F;

Sampler::Sampler(std::shared_ptr<const Vocabulary> vocabulary, SamplerOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), size_(vocabulary_->size()), random_(options_.seed) {
    for (const auto & [token, bias] : options_.logit_bias) {
        require(token >= 0 && token < size_, "argument_invalid",
                "logit_bias names token " + std::to_string(token) + ", the vocabulary has " + std::to_string(size_));
        require(std::isfinite(bias), "argument_invalid", "logit_bias must be finite");
    }
    if (!options_.grammar.empty()) {
        grammar_ = vocabulary_->grammar_sampler(options_.grammar, options_.grammar_lazy, options_.grammar_triggers,
                                                options_.grammar_prefill);
    }
}

Sampler::~Sampler() {
    if (grammar_ != nullptr) {
        llama_sampler_free(grammar_);
    }
}

void Sampler::remember(int32_t token) {
    if (options_.repeat_penalty != 1.0F && options_.penalty_last > 0) {
        recent_.push_back(token);
        if (static_cast<int>(recent_.size()) > options_.penalty_last) {
            recent_.erase(recent_.begin());
        }
    }
}

void Sampler::accept_prompt(const int32_t * tokens, std::size_t count) {
    const std::size_t keep = std::min<std::size_t>(count, static_cast<std::size_t>(std::max(0, options_.penalty_last)));
    for (std::size_t i = count - keep; i < count; ++i) {
        remember(tokens[i]);
    }
}

void Sampler::adjust(float * logits) const {
    for (const auto & [token, bias] : options_.logit_bias) {
        logits[token] += bias;
    }
    if (options_.ignore_eos) {
        for (const int32_t token : vocabulary_->end_tokens()) {
            logits[token] = NEVER;
        }
    }
    if (options_.repeat_penalty != 1.0F) {
        std::vector<int32_t> seen = recent_;
        std::sort(seen.begin(), seen.end());
        seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
        for (const int32_t token : seen) {
            logits[token] = logits[token] > 0 ? logits[token] / options_.repeat_penalty : logits[token] * options_.repeat_penalty;
        }
    }
    if (options_.frequency_penalty != 0.0F || options_.presence_penalty != 0.0F) {
        for (const auto & [token, count] : generated_) {
            logits[token] -= options_.frequency_penalty * static_cast<float>(count) + options_.presence_penalty;
        }
    }
}

// 53 random bits in [0, 1), the same on every platform.
double Sampler::draw() {
    const uint64_t high = random_() >> 5U;
    const uint64_t low  = random_() >> 6U;
    return static_cast<double>((high << 26U) | low) / 9007199254740992.0;
}

// Candidates hold logits already divided by the temperature in `logprob`, best first.
int32_t Sampler::pick_among(std::vector<TokenProbability> & candidates) {
    const float best  = candidates.front().logprob;
    double      total = 0;
    for (const auto & c : candidates) {
        total += std::exp(c.logprob - best);
    }
    double left = draw() * total;
    for (const auto & c : candidates) {
        left -= std::exp(c.logprob - best);
        if (left < 0) {
            return c.token;
        }
    }
    return candidates.back().token;
}

int32_t Sampler::pick(const float * logits) {
    const Kernels & k    = kernels();
    float           best = 0;
    const int       top  = k.argmax(logits, size_, &best);
    require(std::isfinite(best), "compute_failed", "the model's output is not a number; the adapter's weights may be too large");
    if (options_.temperature < TEMPERATURE_MIN) {
        return top;
    }
    const float inverse = 1.0F / options_.temperature;
    const bool  filter  = options_.top_k > 0 || options_.top_p < 1.0F || options_.min_p > 0.0F;
    if (!filter) {
        double left = draw() * k.exp_sum(logits, size_, best, inverse);
        for (int from = 0; from < size_; from += 1024) {
            const int    count = std::min(1024, size_ - from);
            const double part  = k.exp_sum(logits + from, count, best, inverse);
            if (left < part || from + count == size_) {
                for (int i = from; i < from + count; ++i) {
                    left -= std::exp((logits[i] - best) * inverse);
                    if (left < 0) {
                        return i;
                    }
                }
            }
            left -= part > left ? 0 : part;
        }
        return top;
    }
    // Everything below is in units of logit / temperature, relative order unchanged.
    const float                   floor = options_.min_p > 0.0F ? best * inverse + std::log(options_.min_p) : NEVER;
    std::vector<TokenProbability> candidates;
    const auto                    better = [](const TokenProbability & a, const TokenProbability & b) {
        return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
    };
    for (int i = 0; i < size_; ++i) {
        const float scaled = logits[i] * inverse;
        if (scaled >= floor && scaled > NEVER) {
            candidates.push_back({ i, scaled });
        }
    }
    if (options_.top_k > 0 && options_.top_k < static_cast<int>(candidates.size())) {
        std::nth_element(candidates.begin(), candidates.begin() + options_.top_k - 1, candidates.end(), better);
        candidates.resize(options_.top_k);
    }
    if (options_.top_p < 1.0F) {
        double total = 0;
        for (const auto & c : candidates) {
            total += std::exp(c.logprob - best * inverse);
        }
        // Sort only as much of the front as the wanted mass needs.
        std::size_t sorted = 0;
        std::size_t keep   = 0;
        double      mass   = 0;
        while (keep < candidates.size() && (mass < options_.top_p * total || keep == 0)) {
            if (keep == sorted) {
                const std::size_t next = std::min(candidates.size(), std::max<std::size_t>(64, sorted * 8));
                std::partial_sort(candidates.begin() + static_cast<std::ptrdiff_t>(sorted),
                                  candidates.begin() + static_cast<std::ptrdiff_t>(next), candidates.end(), better);
                sorted = next;
            }
            mass += std::exp(candidates[keep].logprob - best * inverse);
            ++keep;
        }
        candidates.resize(keep);
    } else {
        std::sort(candidates.begin(), candidates.end(), better);
    }
    return pick_among(candidates);
}

int32_t Sampler::pick_with_grammar(float * logits) {
    // Most often the free choice fits the grammar; only when it does not is the whole vocabulary checked.
    const int32_t          free_choice = pick(logits);
    llama_token_data       one         = { free_choice, 1.0F, 0.0F };
    llama_token_data_array single      = { &one, 1, -1, false };
    llama_sampler_apply(grammar_, &single);
    if (one.logit != NEVER) {
        return free_choice;
    }
    std::vector<llama_token_data> all(size_);
    for (int i = 0; i < size_; ++i) {
        all[i] = { i, logits[i], 0.0F };
    }
    llama_token_data_array array = { all.data(), all.size(), -1, false };
    llama_sampler_apply(grammar_, &array);
    bool any = false;
    for (std::size_t i = 0; i < array.size; ++i) {
        logits[array.data[i].id] = array.data[i].logit;
        any                      = any || array.data[i].logit != NEVER;
    }
    require(any, "grammar_invalid", "no token of the vocabulary can continue the answer under its grammar");
    return pick(logits);
}

Choice Sampler::sample(float * logits) {
    // libllama's grammars end the process when asked once more after that.
    require(!grammar_dead_, "grammar_invalid", "the grammar came to an end before");
    Choice          choice;
    const Kernels & k       = kernels();
    double          log_sum = 0;
    if (options_.top_logprobs >= 0) {
        float best = 0;
        k.argmax(logits, size_, &best);
        log_sum           = best + std::log(k.exp_sum(logits, size_, best, 1.0F));
        const auto better = [](const TokenProbability & a, const TokenProbability & b) {
            return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
        };
        auto &            heap = choice.top;  // the worst of the best on top
        const std::size_t want = static_cast<std::size_t>(options_.top_logprobs);
        for (int i = 0; want > 0 && i < size_; ++i) {
            if (heap.size() < want || logits[i] > heap.front().logprob) {
                if (heap.size() == want) {
                    std::pop_heap(heap.begin(), heap.end(), better);
                    heap.pop_back();
                }
                heap.push_back({ i, logits[i] });
                std::push_heap(heap.begin(), heap.end(), better);
            }
        }
        std::sort(heap.begin(), heap.end(), better);
        for (auto & t : heap) {
            t.logprob = static_cast<float>(t.logprob - log_sum);
        }
    }
    // The reported log-probability is the model's own, from before bias and penalties.
    const bool         changes = options_.top_logprobs >= 0 && (!options_.logit_bias.empty() || options_.ignore_eos ||
                                                        grammar_ != nullptr || options_.repeat_penalty != 1.0F ||
                                                        options_.frequency_penalty != 0.0F || options_.presence_penalty != 0.0F);
    std::vector<float> before;
    if (changes) {
        before.assign(logits, logits + size_);
    }
    adjust(logits);
    choice.token = grammar_ != nullptr ? pick_with_grammar(logits) : pick(logits);
    if (options_.top_logprobs >= 0) {
        choice.logprob = static_cast<float>((changes ? before[choice.token] : logits[choice.token]) - log_sum);
    }
    if (grammar_ != nullptr) {
        try {
            llama_sampler_accept(grammar_, choice.token);
        } catch (const std::exception & e) {
            grammar_dead_ = true;
            throw Error("grammar_invalid", std::string("the grammar does not accept the chosen token: ") + e.what());
        }
    }
    remember(choice.token);
    if (options_.frequency_penalty != 0.0F || options_.presence_penalty != 0.0F) {
        ++generated_[choice.token];
    }
    return choice;
}

}  // namespace mf
