#include "bind_trainer.hpp"

#include <chrono>
#include <cstring>

#include "bind_model.hpp"
#include "bindings.hpp"
#include "cores.hpp"
#include "memory.hpp"

namespace mf {

Napi::Function TrainerObject::define(Napi::Env env) {
    return DefineClass(env, "Trainer",
                       {
                           InstanceAccessor("parameters", &TrainerObject::parameters, nullptr),
                           InstanceAccessor("bytes", &TrainerObject::bytes, nullptr),
                           InstanceMethod("accumulate", &TrainerObject::accumulate),
                           InstanceMethod("accumulatePreference", &TrainerObject::accumulate_preference),
                           InstanceMethod("evaluate", &TrainerObject::evaluate),
                           InstanceMethod("logProbabilities", &TrainerObject::log_probabilities),
                           InstanceMethod("update", &TrainerObject::update),
                           InstanceMethod("pairs", &TrainerObject::pairs),
                           InstanceMethod("gradients", &TrainerObject::gradients),
                           InstanceMethod("setPairs", &TrainerObject::set_pairs),
                           InstanceMethod("prefix", &TrainerObject::prefix),
                           InstanceMethod("snapshot", &TrainerObject::snapshot),
                           InstanceMethod("restore", &TrainerObject::restore),
                           InstanceMethod("longestHoldMs", &TrainerObject::longest_hold_ms),
                           InstanceMethod("close", &TrainerObject::close),
                       });
}

TrainerOptions trainer_options(const Napi::Object & in) {
    TrainerOptions options;
    options.prefix        = text(in, "method") == "prefix";
    options.rank          = options.prefix ? 0 : integer(in, "rank");
    options.scale         = static_cast<float>(number(in, "scale"));
    options.dropout       = options.prefix ? 0 : static_cast<float>(number(in, "dropout"));
    options.prefix_tokens = options.prefix ? integer(in, "prefixTokens") : 0;
    options.seed          = in.Get("seed").As<Napi::Number>().Uint32Value();
    options.rows_max      = integer(in, "rowsMax");
    options.recompute     = flag(in, "recompute");
    options.share         = static_cast<float>(number(in, "share"));
    const auto targets    = in.Get("targets").As<Napi::Array>();
    for (uint32_t i = 0; i < targets.Length(); ++i) {
        options.targets.at(targets.Get(i).As<Napi::Number>().Uint32Value()) = true;
    }
    return options;
}

// new Trainer(model, options)
TrainerObject::TrainerObject(const Napi::CallbackInfo & info) : Napi::ObjectWrap<TrainerObject>(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
        const ModelObject * model = ModelObject::unwrap(info[0]);
        trainer_ = std::make_unique<Trainer>(model->get(), model->path(), trainer_options(info[1].As<Napi::Object>()));
        return info.Env().Undefined();
    });
}

Trainer & TrainerObject::get() const {
    require(trainer_ != nullptr, "closed", "the trainer was closed");
    return *trainer_;
}

static TrainingRows rows_of(const Napi::Value & value) {
    const auto   in     = value.As<Napi::Object>();
    const auto   tokens = in.Get("tokens").As<Napi::Int32Array>();
    const auto   starts = in.Get("starts").As<Napi::Int32Array>();
    TrainingRows rows{ tokens.Data(), starts.Data(), in.Get("weights").As<Napi::Float32Array>().Data(),
                       static_cast<int>(tokens.ElementLength()), static_cast<int>(starts.ElementLength()) - 1 };
    return rows;
}

template <typename F> static Napi::Object timed_sums(Napi::Env env, F f) {
    const auto                                      start = std::chrono::steady_clock::now();
    const auto                                      sums  = f();
    const std::chrono::duration<double, std::micro> took  = std::chrono::steady_clock::now() - start;
    Napi::Object                                    out   = Napi::Object::New(env);
    out.Set("loss", sums.loss);
    out.Set("weight", sums.weight);
    out.Set("correct", sums.correct);
    out.Set("counted", sums.counted);
    out.Set("computeMicros", took.count());
    if constexpr (std::is_same_v<std::decay_t<decltype(sums)>, PreferenceSums>) {
        out.Set("preferred", sums.preferred);
        out.Set("margin", sums.margin);
    }
    return out;
}

Napi::Value TrainerObject::parameters(const Napi::CallbackInfo & info) {
    return guarded(info.Env(),
                   [&]() -> Napi::Value { return Napi::Number::New(info.Env(), static_cast<double>(get().trained())); });
}

Napi::Value TrainerObject::bytes(const Napi::CallbackInfo & info) {
    return guarded(info.Env(),
                   [&]() -> Napi::Value { return Napi::Number::New(info.Env(), static_cast<double>(get().bytes())); });
}

Napi::Value TrainerObject::longest_hold_ms(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const std::chrono::duration<double, std::milli> hold = Cores::get().take_longest_hold();
        return Napi::Number::New(info.Env(), hold.count());
    });
}

Napi::Value TrainerObject::accumulate(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const double divisor = info[1].As<Napi::Number>().DoubleValue();
        return timed_sums(info.Env(), [&] { return get().accumulate(rows_of(info[0]), divisor); });
    });
}

Napi::Value TrainerObject::accumulate_preference(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto   reference = info[1].As<Napi::Float64Array>();
        const double beta      = info[2].As<Napi::Number>().DoubleValue();
        const double divisor   = info[3].As<Napi::Number>().DoubleValue();
        return timed_sums(info.Env(),
                          [&] { return get().accumulate_preference(rows_of(info[0]), reference.Data(), beta, divisor); });
    });
}

Napi::Value TrainerObject::evaluate(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        return timed_sums(info.Env(), [&] { return get().evaluate(rows_of(info[0]), info[1].ToBoolean().Value()); });
    });
}

Napi::Value TrainerObject::log_probabilities(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto logs = get().log_probabilities(rows_of(info[0]), info[1].ToBoolean().Value());
        auto       out  = Napi::Float64Array::New(info.Env(), logs.size());
        std::copy(logs.begin(), logs.end(), out.Data());
        return out;
    });
}

Napi::Value TrainerObject::update(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto          in = info[0].As<Napi::Object>();
        const UpdateOptions options{ number(in, "learningRate"), number(in, "beta1"),       number(in, "beta2"),
                                     number(in, "epsilon"),      number(in, "weightDecay"), number(in, "clipNorm") };
        const auto          made = get().update(options);
        Napi::Object        out  = Napi::Object::New(info.Env());
        out.Set("gradientNorm", made.norm);
        out.Set("applied", made.applied);
        return out;
    });
}

static Napi::Float32Array copied(Napi::Env env, const float * from, std::size_t count) {
    auto out = Napi::Float32Array::New(env, count);
    std::memcpy(out.Data(), from, count * sizeof(float));
    return out;
}

// B is stored transposed; JavaScript sees [out][rank].
template <typename F> static void each_pair(Trainer & trainer, F f) {
    for (int layer = 0; layer < trainer.model().h().layers; ++layer) {
        for (int id = 0; id < SITE_COUNT; ++id) {
            const auto & site = trainer.parameters().site(layer, static_cast<SiteId>(id));
            for (int index = 0; index < targets_in(static_cast<SiteId>(id)); ++index) {
                const auto & pair = site.pairs[index];
                if (pair.trained) {
                    const int in = trainer.model().layers[layer].sites[id].in;
                    f(layer, target_at(static_cast<SiteId>(id), index), site.a + static_cast<std::size_t>(pair.rank_at) * in, in,
                      pair.bt, pair.out);
                }
            }
        }
    }
}

static Napi::Array pairs_from(Napi::Env env, Trainer & trainer, const float * values) {
    Napi::Array list = Napi::Array::New(env);
    const int   rank = trainer.options().rank;
    each_pair(trainer, [&](int layer, Target target, std::size_t a, int in, std::size_t bt, int out) {
        Napi::Object pair = Napi::Object::New(env);
        auto         b    = Napi::Float32Array::New(env, static_cast<std::size_t>(out) * rank);
        for (int o = 0; o < out; ++o) {
            for (int r = 0; r < rank; ++r) {
                b.Data()[static_cast<std::size_t>(o) * rank + r] = values[bt + static_cast<std::size_t>(r) * out + o];
            }
        }
        pair.Set("target", static_cast<int>(target));
        pair.Set("layer", layer);
        pair.Set("a", copied(env, values + a, static_cast<std::size_t>(rank) * in));
        pair.Set("b", b);
        list.Set(list.Length(), pair);
    });
    return list;
}

Napi::Value TrainerObject::pairs(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value { return pairs_from(info.Env(), get(), get().parameters().values()); });
}

Napi::Value TrainerObject::gradients(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        Trainer &          trainer = get();
        const float *      scaled  = trainer.parameters().gradients();
        std::vector<float> values(scaled, scaled + trainer.parameters().size());
        for (float & value : values) {
            value /= GRADIENT_SCALE;
        }
        return pairs_from(info.Env(), trainer, values.data());
    });
}

Napi::Value TrainerObject::set_pairs(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto list   = info[0].As<Napi::Array>();
        float *    values = get().parameters().values();
        const int  rank   = get().options().rank;
        for (uint32_t i = 0; i < list.Length(); ++i) {
            const auto pair  = list.Get(i).As<Napi::Object>();
            bool       found = false;
            each_pair(get(), [&](int layer, Target target, std::size_t at, int in, std::size_t bt, int out) {
                if (layer != integer(pair, "layer") || target != integer(pair, "target")) {
                    return;
                }
                found        = true;
                const auto a = pair.Get("a").As<Napi::Float32Array>();
                const auto b = pair.Get("b").As<Napi::Float32Array>();
                std::memcpy(values + at, a.Data(), sizeof(float) * rank * in);
                for (int o = 0; o < out; ++o) {
                    for (int r = 0; r < rank; ++r) {
                        values[bt + static_cast<std::size_t>(r) * out + o] = b.Data()[static_cast<std::size_t>(o) * rank + r];
                    }
                }
            });
            require(found, "argument_invalid", "the trainer has no pair for that layer and target");
        }
        return info.Env().Undefined();
    });
}

Napi::Value TrainerObject::prefix(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        Trainer &         trainer = get();
        Napi::Array       list    = Napi::Array::New(info.Env());
        const auto &      h       = trainer.model().h();
        const std::size_t count   = static_cast<std::size_t>(trainer.options().prefix_tokens) * h.kv_width();
        for (int layer = 0; trainer.options().prefix && layer < h.layers; ++layer) {
            const auto & place = trainer.parameters().prefix(layer);
            Napi::Object one   = Napi::Object::New(info.Env());
            one.Set("layer", layer);
            one.Set("k", copied(info.Env(), trainer.parameters().values() + place.k, count));
            one.Set("v", copied(info.Env(), trainer.parameters().values() + place.v, count));
            list.Set(list.Length(), one);
        }
        return list;
    });
}

Napi::Value TrainerObject::snapshot(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto bytes = get().snapshot();
        auto       out   = Napi::Uint8Array::New(info.Env(), bytes.size());
        std::memcpy(out.Data(), bytes.data(), bytes.size());
        return out;
    });
}

Napi::Value TrainerObject::restore(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto bytes = info[0].As<Napi::Uint8Array>();
        get().restore(bytes.Data(), bytes.ByteLength());
        return info.Env().Undefined();
    });
}

Napi::Value TrainerObject::close(const Napi::CallbackInfo & info) {
    trainer_ = nullptr;
    // Hundreds of megabytes in pieces that are too small for the allocator to give back by itself.
    return_freed_memory();
    return info.Env().Undefined();
}

}  // namespace mf
