// Tokeniser, chat template, tool-call parser and grammars of a model: libllama's, loaded without weights.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct common_chat_templates;

namespace mf {

struct GrammarTrigger {
    int         type;
    std::string value;
    int32_t     token;
};

struct ChatInput {
    std::string                                      messages_json;
    std::string                                      tools_json;
    std::string                                      tool_choice;  // auto, none, required
    bool                                             parallel_tool_calls = false;
    std::string                                      json_schema;
    std::vector<std::pair<std::string, std::string>> arguments;  // name, JSON value
    bool                                             add_generation_prompt = true;
    bool                                             prompt_only           = false;
};

struct ChatPrompt {
    std::string                 prompt;
    std::string                 grammar;
    bool                        grammar_lazy = false;
    std::vector<GrammarTrigger> grammar_triggers;
    std::vector<std::string>    preserved_tokens;
    std::vector<std::string>    stops;
    std::string                 generation_prompt;
    int                         format = 0;
    std::string                 parser;
};

struct ToolCall {
    std::string id;
    std::string name;
    std::string arguments;
};

struct ParsedMessage {
    std::string           content;
    std::string           reasoning;
    std::vector<ToolCall> tool_calls;
};

class Vocabulary {
  public:
    // The vocabulary already open for this file, or a new one.
    static std::shared_ptr<Vocabulary> open(const std::string & path);
    ~Vocabulary();
    Vocabulary(const Vocabulary &)             = delete;
    Vocabulary & operator=(const Vocabulary &) = delete;

    int                          size() const { return size_; }
    int32_t                      bos() const { return llama_vocab_bos(vocab_); }
    int32_t                      eos() const { return llama_vocab_eos(vocab_); }
    bool                         add_bos() const { return llama_vocab_get_add_bos(vocab_); }
    const std::vector<int32_t> & end_tokens() const { return end_tokens_; }

    std::vector<int32_t> tokenize(const std::string & text, bool special, bool add_bos) const;
    std::string          token_bytes(int32_t token, bool special) const;
    ChatPrompt           chat_prompt(const ChatInput & input) const;
    ParsedMessage        parse_chat(const std::string & text, int format, const std::string & parser,
                                    const std::string & generation_prompt, bool partial) const;
    static std::string   schema_to_grammar(const std::string & schema_json);

    // Owned by the caller (llama_sampler_free).
    llama_sampler * grammar_sampler(const std::string & grammar, bool lazy, const std::vector<GrammarTrigger> & triggers,
                                    const std::string & prefill) const;

  private:
    Vocabulary()                       = default;
    llama_model *           model_     = nullptr;
    const llama_vocab *     vocab_     = nullptr;
    common_chat_templates * templates_ = nullptr;
    int                     size_      = 0;
    std::vector<int32_t>    end_tokens_;
};

}  // namespace mf
