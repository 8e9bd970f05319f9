// The JavaScript class Trainer.
#pragma once

#include <napi.h>

#include "training/trainer.hpp"

namespace mf {

TrainerOptions trainer_options(const Napi::Object & in);

class TrainerObject : public Napi::ObjectWrap<TrainerObject> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit TrainerObject(const Napi::CallbackInfo & info);

  private:
    Trainer &   get() const;
    Napi::Value parameters(const Napi::CallbackInfo & info);
    Napi::Value bytes(const Napi::CallbackInfo & info);
    Napi::Value accumulate(const Napi::CallbackInfo & info);
    Napi::Value accumulate_preference(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    Napi::Value log_probabilities(const Napi::CallbackInfo & info);
    Napi::Value update(const Napi::CallbackInfo & info);
    Napi::Value pairs(const Napi::CallbackInfo & info);
    Napi::Value gradients(const Napi::CallbackInfo & info);
    Napi::Value set_pairs(const Napi::CallbackInfo & info);
    Napi::Value prefix(const Napi::CallbackInfo & info);
    Napi::Value snapshot(const Napi::CallbackInfo & info);
    Napi::Value restore(const Napi::CallbackInfo & info);
    Napi::Value longest_hold_ms(const Napi::CallbackInfo & info);
    Napi::Value close(const Napi::CallbackInfo & info);

    std::unique_ptr<Trainer> trainer_;
};

}  // namespace mf
