#pragma once

#include <napi.h>

#include "vocabulary.hpp"

namespace mf {

class VocabularyObject : public Napi::ObjectWrap<VocabularyObject> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit VocabularyObject(const Napi::CallbackInfo & info);

  private:
    const Vocabulary & get() const;
    Napi::Value        facts(const Napi::CallbackInfo & info);
    Napi::Value        tokenize(const Napi::CallbackInfo & info);
    Napi::Value        token_bytes(const Napi::CallbackInfo & info);
    Napi::Value        chat_prompt(const Napi::CallbackInfo & info);
    Napi::Value        parse_chat(const Napi::CallbackInfo & info);
    Napi::Value        schema_to_grammar(const Napi::CallbackInfo & info);
    Napi::Value        close(const Napi::CallbackInfo & info);

    std::shared_ptr<Vocabulary> vocabulary_;
};

}  // namespace mf
