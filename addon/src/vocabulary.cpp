#include "vocabulary.hpp"

#include <chat.h>
#include <json-schema-to-grammar.h>
#include <log.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>

#include "backends.hpp"
#include "error.hpp"

namespace mf {

std::shared_ptr<Vocabulary> Vocabulary::open(const std::string & path) {
    static std::mutex                                       guard;
    static std::map<std::string, std::weak_ptr<Vocabulary>> opened;
    const std::lock_guard<std::mutex>                       lock(guard);
    auto &                                                  entry = opened[path];
    if (auto existing = entry.lock()) {
        return existing;
    }
    llama_log_set(log_errors_only, nullptr);
    common_log_set_verbosity_thold(LOG_LEVEL_ERROR);
    llama_model_params params = llama_model_default_params();
    params.vocab_only         = true;
    params.n_gpu_layers       = 0;
    std::shared_ptr<Vocabulary> vocabulary(new Vocabulary());
    vocabulary->model_ = llama_model_load_from_file(path.c_str(), params);
    require(vocabulary->model_ != nullptr, "model_invalid", "the tokenizer of " + path + " could not be read");
    vocabulary->vocab_ = llama_model_get_vocab(vocabulary->model_);
    vocabulary->size_  = llama_vocab_n_tokens(vocabulary->vocab_);
    for (int32_t token = 0; token < vocabulary->size_; ++token) {
        if (llama_vocab_is_eog(vocabulary->vocab_, token)) {
            vocabulary->end_tokens_.push_back(token);
        }
    }
    try {
        vocabulary->templates_ = common_chat_templates_init(vocabulary->model_, "").release();
    } catch (const std::exception & e) {
        throw Error("template_invalid", std::string("the chat template inside the model file is not usable: ") + e.what());
    }
    entry = vocabulary;
    return vocabulary;
}

Vocabulary::~Vocabulary() {
    if (templates_ != nullptr) {
        common_chat_templates_free(templates_);
    }
    if (model_ != nullptr) {
        llama_model_free(model_);
    }
}

std::vector<int32_t> Vocabulary::tokenize(const std::string & text, bool special, bool add_bos) const {
    std::vector<int32_t> tokens(text.size() + 2);
    int                  n = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                            static_cast<int32_t>(tokens.size()), add_bos, special);
    if (n < 0) {
        tokens.resize(static_cast<std::size_t>(-n));
        n = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                           static_cast<int32_t>(tokens.size()), add_bos, special);
    }
    require(n >= 0, "argument_invalid", "the text could not be tokenised");
    tokens.resize(static_cast<std::size_t>(n));
    return tokens;
}

std::string Vocabulary::token_bytes(int32_t token, bool special) const {
    require(token >= 0 && token < size_, "argument_invalid", "there is no token " + std::to_string(token));
    std::string bytes(64, '\0');
    int         n = llama_token_to_piece(vocab_, token, bytes.data(), static_cast<int32_t>(bytes.size()), 0, special);
    if (n < 0) {
        bytes.resize(static_cast<std::size_t>(-n));
        n = llama_token_to_piece(vocab_, token, bytes.data(), static_cast<int32_t>(bytes.size()), 0, special);
    }
    bytes.resize(static_cast<std::size_t>(std::max(0, n)));
    return bytes;
}

ChatPrompt Vocabulary::chat_prompt(const ChatInput & input) const {
    common_chat_templates_inputs inputs;
    common_chat_params           params;
    try {
        inputs.messages = common_chat_msgs_parse_oaicompat(common_json::parse(input.messages_json));
        if (!input.tools_json.empty()) {
            inputs.tools = common_chat_tools_parse_oaicompat(common_json::parse(input.tools_json));
        }
        inputs.tool_choice           = common_chat_tool_choice_parse_oaicompat(input.tool_choice);
        inputs.parallel_tool_calls   = input.parallel_tool_calls;
        inputs.json_schema           = input.json_schema;
        inputs.add_generation_prompt = input.add_generation_prompt;
        inputs.force_pure_content    = input.prompt_only;
        inputs.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK;
        for (const auto & [name, value] : input.arguments) {
            inputs.chat_template_kwargs[name] = value;
            if (name == "enable_thinking") {
                inputs.enable_thinking = value != "false";
            }
        }
        params = common_chat_templates_apply(templates_, inputs);
    } catch (const std::exception & e) {
        throw Error("template_invalid", std::string("the chat template does not take these messages: ") + e.what());
    }
    ChatPrompt prompt;
    prompt.prompt            = params.prompt;
    prompt.grammar           = params.grammar;
    prompt.grammar_lazy      = params.grammar_lazy;
    prompt.preserved_tokens  = params.preserved_tokens;
    prompt.stops             = params.additional_stops;
    prompt.generation_prompt = params.generation_prompt;
    prompt.format            = static_cast<int>(params.format);
    prompt.parser            = params.parser;
    for (const auto & trigger : params.grammar_triggers) {
        GrammarTrigger out = { static_cast<int>(trigger.type), trigger.value, trigger.token };
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
            // A word that is a single preserved token triggers as that token.
            const auto tokens = tokenize(trigger.value, true, false);
            if (tokens.size() == 1 && std::find(params.preserved_tokens.begin(), params.preserved_tokens.end(), trigger.value) !=
                                          params.preserved_tokens.end()) {
                out = { static_cast<int>(COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN), trigger.value, tokens[0] };
            }
        }
        prompt.grammar_triggers.push_back(out);
    }
    return prompt;
}

ParsedMessage Vocabulary::parse_chat(const std::string & text, int format, const std::string & parser,
                                     const std::string & generation_prompt, bool partial) const {
    require(format >= 0 && format < COMMON_CHAT_FORMAT_COUNT, "argument_invalid", "unknown chat format");
    ParsedMessage out;
    try {
        common_chat_parser_params params;
        params.format            = static_cast<common_chat_format>(format);
        params.reasoning_format  = COMMON_REASONING_FORMAT_DEEPSEEK;
        params.generation_prompt = generation_prompt;
        if (!parser.empty()) {
            params.parser.load(parser);
        }
        const common_chat_msg message = common_chat_parse(text, partial, params);
        out.content                   = message.content;
        out.reasoning                 = message.reasoning_content;
        for (const auto & call : message.tool_calls) {
            out.tool_calls.push_back({ call.id, call.name, call.arguments });
        }
    } catch (const std::exception & e) {
        throw Error("template_invalid", std::string("the answer could not be parsed: ") + e.what());
    }
    return out;
}

std::string Vocabulary::schema_to_grammar(const std::string & schema_json) {
    try {
        return json_schema_to_grammar(common_json::parse(schema_json), true);
    } catch (const std::exception & e) {
        throw Error("grammar_invalid", std::string("the JSON schema cannot be turned into a grammar: ") + e.what());
    }
}

llama_sampler * Vocabulary::grammar_sampler(const std::string & grammar, bool lazy, const std::vector<GrammarTrigger> & triggers,
                                            const std::string & prefill) const {
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    for (const auto & trigger : triggers) {
        switch (trigger.type) {
            case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
                require(trigger.token >= 0 && trigger.token < size_, "argument_invalid",
                        "a grammar trigger names a token that does not exist");
                tokens.push_back(trigger.token);
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
                patterns.push_back(regex_escape(trigger.value));
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
                patterns.push_back(trigger.value);
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: {
                std::string anchored = trigger.value;
                if (anchored.empty() || anchored.front() != '^') {
                    anchored = "^" + anchored;
                }
                if (anchored.back() != '$') {
                    anchored += "$";
                }
                patterns.push_back(anchored);
                break;
            }
            default:
                throw Error("argument_invalid", "unknown kind of grammar trigger");
        }
    }
    llama_sampler * sampler = nullptr;
    try {
        if (lazy) {
            std::vector<const char *> views;
            for (const auto & p : patterns) {
                views.push_back(p.c_str());
            }
            sampler = llama_sampler_init_grammar_lazy_patterns(vocab_, grammar.c_str(), "root", views.data(), views.size(),
                                                               tokens.data(), tokens.size());
        } else {
            sampler = llama_sampler_init_grammar(vocab_, grammar.c_str(), "root");
        }
        require(sampler != nullptr, "grammar_invalid", "the grammar could not be parsed");
        if (!lazy && !prefill.empty()) {
            for (const int32_t token : tokenize(prefill, true, false)) {
                // libllama ends the process when a grammar is told of an end token that it does not expect.
                require(!llama_vocab_is_eog(vocab_, token), "grammar_invalid",
                        "the text before the answer holds a token that ends answers");
                llama_sampler_accept(sampler, token);
            }
        }
    } catch (const Error &) {
        if (sampler != nullptr) {
            llama_sampler_free(sampler);
        }
        throw;
    } catch (const std::exception & e) {
        if (sampler != nullptr) {
            llama_sampler_free(sampler);
        }
        throw Error("grammar_invalid", std::string("the grammar could not be started: ") + e.what());
    }
    return sampler;
}

}  // namespace mf
