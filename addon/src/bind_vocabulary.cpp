#include "bind_vocabulary.hpp"

#include "bindings.hpp"

namespace mf {

Napi::Function VocabularyObject::define(Napi::Env env) {
    return DefineClass(env, "Vocabulary",
                       {
                           InstanceMethod("facts", &VocabularyObject::facts),
                           InstanceMethod("tokenize", &VocabularyObject::tokenize),
                           InstanceMethod("tokenBytes", &VocabularyObject::token_bytes),
                           InstanceMethod("chatPrompt", &VocabularyObject::chat_prompt),
                           InstanceMethod("parseChat", &VocabularyObject::parse_chat),
                           InstanceMethod("schemaToGrammar", &VocabularyObject::schema_to_grammar),
                           InstanceMethod("close", &VocabularyObject::close),
                       });
}

VocabularyObject::VocabularyObject(const Napi::CallbackInfo & info) : Napi::ObjectWrap<VocabularyObject>(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
        vocabulary_ = Vocabulary::open(info[0].As<Napi::String>().Utf8Value());
        return info.Env().Undefined();
    });
}

const Vocabulary & VocabularyObject::get() const {
    require(vocabulary_ != nullptr, "closed", "the vocabulary was closed");
    return *vocabulary_;
}

static Napi::Int32Array int_array(Napi::Env env, const std::vector<int32_t> & values) {
    Napi::Int32Array out = Napi::Int32Array::New(env, values.size());
    std::copy(values.begin(), values.end(), out.Data());
    return out;
}

static Napi::Array string_array(Napi::Env env, const std::vector<std::string> & values) {
    Napi::Array out = Napi::Array::New(env, values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        out.Set(static_cast<uint32_t>(i), values[i]);
    }
    return out;
}

Napi::Value VocabularyObject::facts(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        Napi::Object o = Napi::Object::New(info.Env());
        o.Set("size", get().size());
        o.Set("bos", get().bos());
        o.Set("eos", get().eos());
        o.Set("addBos", get().add_bos());
        o.Set("endTokens", int_array(info.Env(), get().end_tokens()));
        return o;
    });
}

// tokenize(text, special, addBos)
Napi::Value VocabularyObject::tokenize(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        return int_array(info.Env(),
                         get().tokenize(info[0].As<Napi::String>().Utf8Value(), info[1].ToBoolean(), info[2].ToBoolean()));
    });
}

// tokenBytes(token, special)
Napi::Value VocabularyObject::token_bytes(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const std::string bytes = get().token_bytes(info[0].As<Napi::Number>().Int32Value(), info[1].ToBoolean());
        return Napi::Buffer<char>::Copy(info.Env(), bytes.data(), bytes.size());
    });
}

Napi::Value VocabularyObject::chat_prompt(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto env = info.Env();
        const auto in  = info[0].As<Napi::Object>();
        ChatInput  input;
        input.messages_json       = text(in, "messagesJson");
        input.tools_json          = text(in, "toolsJson");
        input.tool_choice         = text(in, "toolChoice");
        input.parallel_tool_calls = flag(in, "parallelToolCalls");
        input.json_schema         = text(in, "jsonSchema");
        if (in.Get("addGenerationPrompt").IsBoolean()) {
            input.add_generation_prompt = flag(in, "addGenerationPrompt");
        }
        if (in.Get("promptOnly").IsBoolean()) {
            input.prompt_only = flag(in, "promptOnly");
        }
        if (in.Get("templateArguments").IsObject()) {
            const auto arguments = in.Get("templateArguments").As<Napi::Object>();
            const auto names     = arguments.GetPropertyNames();
            for (uint32_t i = 0; i < names.Length(); ++i) {
                const std::string name = names.Get(i).As<Napi::String>().Utf8Value();
                input.arguments.emplace_back(name, text(arguments, name.c_str()));
            }
        }
        const ChatPrompt p   = get().chat_prompt(input);
        Napi::Object     out = Napi::Object::New(env);
        out.Set("prompt", p.prompt);
        out.Set("grammar", p.grammar);
        out.Set("grammarLazy", p.grammar_lazy);
        Napi::Array triggers = Napi::Array::New(env, p.grammar_triggers.size());
        for (std::size_t i = 0; i < p.grammar_triggers.size(); ++i) {
            Napi::Object trigger = Napi::Object::New(env);
            trigger.Set("type", p.grammar_triggers[i].type);
            trigger.Set("value", p.grammar_triggers[i].value);
            trigger.Set("token", p.grammar_triggers[i].token);
            triggers.Set(static_cast<uint32_t>(i), trigger);
        }
        out.Set("grammarTriggers", triggers);
        out.Set("preservedTokens", string_array(env, p.preserved_tokens));
        out.Set("stops", string_array(env, p.stops));
        out.Set("generationPrompt", p.generation_prompt);
        out.Set("format", p.format);
        out.Set("parser", p.parser);
        return out;
    });
}

// parseChat(text, format, parser, generationPrompt, partial)
Napi::Value VocabularyObject::parse_chat(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto          env = info.Env();
        const ParsedMessage m =
            get().parse_chat(info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::Number>().Int32Value(),
                             info[2].As<Napi::String>().Utf8Value(), info[3].As<Napi::String>().Utf8Value(), info[4].ToBoolean());
        Napi::Object out = Napi::Object::New(env);
        out.Set("content", m.content);
        out.Set("reasoningContent", m.reasoning);
        Napi::Array calls = Napi::Array::New(env, m.tool_calls.size());
        for (std::size_t i = 0; i < m.tool_calls.size(); ++i) {
            Napi::Object call = Napi::Object::New(env);
            call.Set("id", m.tool_calls[i].id);
            call.Set("name", m.tool_calls[i].name);
            call.Set("arguments", m.tool_calls[i].arguments);
            calls.Set(static_cast<uint32_t>(i), call);
        }
        out.Set("toolCalls", calls);
        return out;
    });
}

Napi::Value VocabularyObject::schema_to_grammar(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        return Napi::String::New(info.Env(), Vocabulary::schema_to_grammar(info[0].As<Napi::String>().Utf8Value()));
    });
}

Napi::Value VocabularyObject::close(const Napi::CallbackInfo & info) {
    vocabulary_ = nullptr;
    return info.Env().Undefined();
}

}  // namespace mf
