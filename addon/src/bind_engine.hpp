#pragma once

#include <napi.h>

#include "engine.hpp"

namespace mf {

class EngineObject : public Napi::ObjectWrap<EngineObject> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit EngineObject(const Napi::CallbackInfo & info);

  private:
    Engine &    get() const;
    Napi::Value cells(const Napi::CallbackInfo & info);
    Napi::Value cells_free(const Napi::CallbackInfo & info);
    Napi::Value set_slot(const Napi::CallbackInfo & info);
    Napi::Value clear_slot(const Napi::CallbackInfo & info);
    Napi::Value trim_sequence(const Napi::CallbackInfo & info);
    Napi::Value share_sequence(const Napi::CallbackInfo & info);
    Napi::Value sequence_length(const Napi::CallbackInfo & info);
    Napi::Value create_sampler(const Napi::CallbackInfo & info);
    Napi::Value accept_tokens(const Napi::CallbackInfo & info);
    Napi::Value free_sampler(const Napi::CallbackInfo & info);
    Napi::Value load_prefix(const Napi::CallbackInfo & info);
    Napi::Value step(const Napi::CallbackInfo & info);
    Napi::Value close(const Napi::CallbackInfo & info);

    std::unique_ptr<Engine> engine_;
};

}  // namespace mf
