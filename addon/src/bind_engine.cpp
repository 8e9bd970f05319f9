#include "bind_engine.hpp"

#include "bind_model.hpp"
#include "bindings.hpp"

namespace mf {

Napi::Function EngineObject::define(Napi::Env env) {
    return DefineClass(env, "Engine",
                       {
                           InstanceAccessor("kvCells", &EngineObject::cells, nullptr),
                           InstanceAccessor("kvCellsFree", &EngineObject::cells_free, nullptr),
                           InstanceMethod("setSlot", &EngineObject::set_slot),
                           InstanceMethod("clearSlot", &EngineObject::clear_slot),
                           InstanceMethod("trimSequence", &EngineObject::trim_sequence),
                           InstanceMethod("shareSequence", &EngineObject::share_sequence),
                           InstanceMethod("sequenceLength", &EngineObject::sequence_length),
                           InstanceMethod("createSampler", &EngineObject::create_sampler),
                           InstanceMethod("acceptTokens", &EngineObject::accept_tokens),
                           InstanceMethod("freeSampler", &EngineObject::free_sampler),
                           InstanceMethod("loadPrefix", &EngineObject::load_prefix),
                           InstanceMethod("step", &EngineObject::step),
                           InstanceMethod("close", &EngineObject::close),
                       });
}

static int at(const Napi::CallbackInfo & info, std::size_t index) { return info[index].As<Napi::Number>().Int32Value(); }

// new Engine(model, options)
EngineObject::EngineObject(const Napi::CallbackInfo & info) : Napi::ObjectWrap<EngineObject>(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
        const ModelObject * model = ModelObject::unwrap(info[0]);
        const auto          in    = info[1].As<Napi::Object>();
        EngineOptions       options;
        options.kv_cells         = integer(in, "kvCells");
        options.sequences_max    = integer(in, "sequencesMax");
        options.batch_tokens_max = integer(in, "batchTokensMax");
        options.slots            = integer(in, "slots");
        options.slot_rank_max    = integer(in, "slotRankMax");
        options.kv_f32           = text(in, "kvType") == "f32";
        engine_                  = std::make_unique<Engine>(model->get(), Vocabulary::open(model->path()), options);
        return info.Env().Undefined();
    });
}

Engine & EngineObject::get() const {
    require(engine_ != nullptr, "closed", "the engine was closed");
    return *engine_;
}

Napi::Value EngineObject::cells(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), get().cache().cells()); });
}

Napi::Value EngineObject::cells_free(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), get().cache().cells_free()); });
}

Napi::Value EngineObject::set_slot(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        get().set_slot(at(info, 0), ImageObject::unwrap(info[1])->get());
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::clear_slot(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        get().clear_slot(at(info, 0));
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::trim_sequence(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        get().trim_sequence(at(info, 0), at(info, 1));
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::share_sequence(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        get().share_sequence(at(info, 0), at(info, 1), at(info, 2));
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::sequence_length(const Napi::CallbackInfo & info) {
    return guarded(info.Env(),
                   [&]() -> Napi::Value { return Napi::Number::New(info.Env(), get().sequence_length(at(info, 0))); });
}

Napi::Value EngineObject::create_sampler(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto     in = info[0].As<Napi::Object>();
        SamplerOptions o;
        o.temperature       = static_cast<float>(number(in, "temperature"));
        o.top_k             = integer(in, "topK");
        o.top_p             = static_cast<float>(number(in, "topP"));
        o.min_p             = static_cast<float>(number(in, "minP"));
        o.repeat_penalty    = static_cast<float>(number(in, "repeatPenalty"));
        o.frequency_penalty = static_cast<float>(number(in, "frequencyPenalty"));
        o.presence_penalty  = static_cast<float>(number(in, "presencePenalty"));
        o.penalty_last      = integer(in, "penaltyLast");
        o.seed              = in.Get("seed").As<Napi::Number>().Uint32Value();
        o.top_logprobs      = integer(in, "topLogprobs");
        o.ignore_eos        = flag(in, "ignoreEos");
        o.grammar           = text(in, "grammar");
        o.grammar_lazy      = flag(in, "grammarLazy");
        o.grammar_prefill   = text(in, "grammarPrefill");
        const auto biases   = in.Get("logitBias").As<Napi::Array>();
        for (uint32_t i = 0; i < biases.Length(); ++i) {
            const auto bias = biases.Get(i).As<Napi::Object>();
            o.logit_bias.emplace_back(integer(bias, "token"), static_cast<float>(number(bias, "bias")));
        }
        const auto triggers = in.Get("grammarTriggers").As<Napi::Array>();
        for (uint32_t i = 0; i < triggers.Length(); ++i) {
            const auto trigger = triggers.Get(i).As<Napi::Object>();
            o.grammar_triggers.push_back({ integer(trigger, "type"), text(trigger, "value"), integer(trigger, "token") });
        }
        return Napi::Number::New(info.Env(), get().create_sampler(std::move(o)));
    });
}

Napi::Value EngineObject::accept_tokens(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto tokens = info[1].As<Napi::Int32Array>();
        get().accept_tokens(at(info, 0), tokens.Data(), tokens.ElementLength());
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::free_sampler(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        get().free_sampler(at(info, 0));
        return info.Env().Undefined();
    });
}

static Napi::Object choice_object(Napi::Env env, const Choice & choice) {
    Napi::Object o = Napi::Object::New(env);
    o.Set("token", choice.token);
    o.Set("logprob", choice.logprob);
    Napi::Array top = Napi::Array::New(env, choice.top.size());
    for (std::size_t i = 0; i < choice.top.size(); ++i) {
        Napi::Object entry = Napi::Object::New(env);
        entry.Set("token", choice.top[i].token);
        entry.Set("logprob", choice.top[i].logprob);
        top.Set(static_cast<uint32_t>(i), entry);
    }
    o.Set("top", top);
    if (!choice.error.empty()) {
        o.Set("error", choice.error);
    }
    return o;
}

// step({tokens, positions, sequences, slots, outputs, samplers, targets, wantLogits, wantHidden})
Napi::Value EngineObject::step(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto env  = info.Env();
        const auto in   = info[0].As<Napi::Object>();
        const auto list = [&](const char * key) {
            return in.Get(key).As<Napi::Int32Array>();
        };
        const auto tokens = list("tokens"), positions = list("positions"), sequences = list("sequences"), slots = list("slots");
        const auto outputs = list("outputs"), samplers = list("samplers");
        require(positions.ElementLength() == tokens.ElementLength() && sequences.ElementLength() == tokens.ElementLength() &&
                    slots.ElementLength() == tokens.ElementLength() && samplers.ElementLength() == outputs.ElementLength(),
                "argument_invalid", "the arrays of a step must have equal lengths");
        StepBatch batch    = {};
        batch.tokens       = tokens.Data();
        batch.positions    = positions.Data();
        batch.sequences    = sequences.Data();
        batch.slots        = slots.Data();
        batch.rows         = static_cast<int>(tokens.ElementLength());
        batch.outputs      = outputs.Data();
        batch.samplers     = samplers.Data();
        batch.output_count = static_cast<int>(outputs.ElementLength());
        batch.want_logits  = flag(in, "wantLogits");
        batch.want_hidden  = flag(in, "wantHidden");
        Napi::Int32Array targets;
        if (in.Get("targets").IsTypedArray()) {
            targets = list("targets");
            require(targets.ElementLength() == outputs.ElementLength(), "argument_invalid",
                    "the arrays of a step must have equal lengths");
            batch.targets = targets.Data();
        }
        const StepResult result  = get().step(batch);
        Napi::Object     out     = Napi::Object::New(env);
        Napi::Array      choices = Napi::Array::New(env, result.choices.size());
        for (std::size_t i = 0; i < result.choices.size(); ++i) {
            choices.Set(static_cast<uint32_t>(i), choice_object(env, result.choices[i]));
        }
        out.Set("choices", choices);
        if (batch.want_logits || batch.want_hidden) {
            Napi::Float32Array values = Napi::Float32Array::New(env, result.values.size());
            std::copy(result.values.begin(), result.values.end(), values.Data());
            out.Set(batch.want_hidden ? "hidden" : "logits", values);
        }
        if (batch.targets != nullptr) {
            Napi::Float32Array logprobs = Napi::Float32Array::New(env, result.target_logprobs.size());
            std::copy(result.target_logprobs.begin(), result.target_logprobs.end(), logprobs.Data());
            Napi::Uint8Array hits = Napi::Uint8Array::New(env, result.target_hits.size());
            std::copy(result.target_hits.begin(), result.target_hits.end(), hits.Data());
            out.Set("targetLogprobs", logprobs);
            out.Set("targetHits", hits);
        }
        out.Set("computeMicros", static_cast<double>(result.compute_micros));
        return out;
    });
}

// loadPrefix(sequence, [{ k, v } per layer])
Napi::Value EngineObject::load_prefix(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        std::vector<const float *> keys;
        std::vector<const float *> values;
        int                        length = 0;
        const auto                 layers = info[1].As<Napi::Array>();
        for (uint32_t i = 0; i < layers.Length(); ++i) {
            const auto layer = layers.Get(i).As<Napi::Object>();
            const auto k     = layer.Get("k").As<Napi::Float32Array>();
            keys.push_back(k.Data());
            values.push_back(layer.Get("v").As<Napi::Float32Array>().Data());
            length = static_cast<int>(k.ElementLength()) / get().model().h().kv_width();
        }
        get().load_prefix(at(info, 0), keys, values, length);
        return info.Env().Undefined();
    });
}

Napi::Value EngineObject::close(const Napi::CallbackInfo & info) {
    engine_ = nullptr;
    return info.Env().Undefined();
}

}  // namespace mf
