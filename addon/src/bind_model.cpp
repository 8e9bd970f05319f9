#include "bind_model.hpp"

#include "bind_trainer.hpp"
#include "bindings.hpp"

namespace mf {

// Types of wrapped objects are told apart by tags, so that a wrong object is an error and not a crash.
static const napi_type_tag IMAGE_TAG = { 0x6d66696d61676501ULL, 0x9d0b5e6ac1f24a11ULL };
static const napi_type_tag MODEL_TAG = { 0x6d666d6f64656c01ULL, 0x9d0b5e6ac1f24a12ULL };

Napi::Function ImageObject::define(Napi::Env env) {
    return DefineClass(env, "AdapterImage",
                       {
                           InstanceAccessor("bytes", &ImageObject::bytes, nullptr),
                           InstanceAccessor("rankMax", &ImageObject::rank_max, nullptr),
                           InstanceMethod("release", &ImageObject::release),
                       });
}

ImageObject::ImageObject(const Napi::CallbackInfo & info) : Napi::ObjectWrap<ImageObject>(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
        require(info.Length() == 1 && info[0].IsExternal(), "argument_invalid", "adapter images are made by Model.buildAdapter");
        // V8 is not told of these bytes. Whoever keeps images counts and releases them; V8 would collect garbage in this
        // thread, the engine's, for every few that come, and free none.
        image_    = *info[0].As<Napi::External<std::shared_ptr<const AdapterImage>>>().Data();
        bytes_    = image_->bytes();
        rank_max_ = image_->rank_max();
        info.This().As<Napi::Object>().TypeTag(&IMAGE_TAG);
        return info.Env().Undefined();
    });
}

std::shared_ptr<const AdapterImage> ImageObject::get() const {
    require(image_ != nullptr, "closed", "the adapter image was released");
    return image_;
}

ImageObject * ImageObject::unwrap(const Napi::Value & value) {
    require(value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&IMAGE_TAG), "argument_invalid",
            "an adapter image was expected");
    return Napi::ObjectWrap<ImageObject>::Unwrap(value.As<Napi::Object>());
}

Napi::Value ImageObject::bytes(const Napi::CallbackInfo & info) {
    return Napi::Number::New(info.Env(), static_cast<double>(bytes_));
}

Napi::Value ImageObject::rank_max(const Napi::CallbackInfo & info) { return Napi::Number::New(info.Env(), rank_max_); }

Napi::Value ImageObject::release(const Napi::CallbackInfo & info) {
    image_ = nullptr;
    return info.Env().Undefined();
}

Napi::Function ModelObject::define(Napi::Env env) {
    return DefineClass(env, "Model",
                       {
                           InstanceMethod("facts", &ModelObject::facts),
                           InstanceMethod("buildAdapter", &ModelObject::build_adapter),
                           InstanceMethod("trainerMemory", &ModelObject::trainer_memory),
                           InstanceMethod("close", &ModelObject::close),
                       });
}

// new Model(path, device, threads, exact)
ModelObject::ModelObject(const Napi::CallbackInfo & info) : Napi::ObjectWrap<ModelObject>(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
        path_  = info[0].As<Napi::String>().Utf8Value();
        model_ = Model::open(path_, info[1].As<Napi::String>().Utf8Value(), info[2].As<Napi::Number>().Int32Value(),
                             info[3].ToBoolean());
        info.This().As<Napi::Object>().TypeTag(&MODEL_TAG);
        return info.Env().Undefined();
    });
}

std::shared_ptr<Model> ModelObject::get() const {
    require(model_ != nullptr, "closed", "the model was closed");
    return model_;
}

ModelObject * ModelObject::unwrap(const Napi::Value & value) {
    require(value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&MODEL_TAG), "argument_invalid", "a model was expected");
    return Napi::ObjectWrap<ModelObject>::Unwrap(value.As<Napi::Object>());
}

Napi::Value ModelObject::facts(const Napi::CallbackInfo & info) {
    return guarded(info.Env(),
                   [&]() -> Napi::Value {
                       static const char * names[TARGET_COUNT] = { "attn_q",   "attn_k", "attn_v",  "attn_output",
                                                                   "ffn_gate", "ffn_up", "ffn_down" };
                       const auto          env                 = info.Env();
                       const auto          model               = get();
                       const auto &        h                   = model->h();
                       Napi::Object        o                   = Napi::Object::New(env);
                       o.Set("architecture", h.architecture);
                       o.Set("name", h.name);
                       o.Set("layers", h.layers);
                       o.Set("embedding", h.embedding);
                       o.Set("heads", h.heads);
                       o.Set("kvHeads", h.kv_heads);
                       o.Set("headDim", h.head_dim);
                       o.Set("feedForward", h.feed_forward);
                       o.Set("vocabulary", h.vocabulary);
                       o.Set("contextTrained", h.context_trained);
                       Napi::Object targets = Napi::Object::New(env);
                       for (int t = 0; t < TARGET_COUNT; ++t) {
                           Napi::Object shape = Napi::Object::New(env);
                           shape.Set("in", model->target_in(static_cast<Target>(t)));
                           shape.Set("out", model->target_out(static_cast<Target>(t)));
                           targets.Set(names[t], shape);
                       }
                       o.Set("targets", targets);
                       o.Set("ropePermuted", h.rope_permuted);
                       o.Set("weightBytes", static_cast<double>(model->weight_bytes()));
                       o.Set("device", device_object(env, model->backend().device()));
                       return o;
                   });
}

namespace {

// Makes the memory for images to come ready while nobody waits for one.
class SpareWorker : public Napi::AsyncWorker {
  public:
    SpareWorker(Napi::Env env, std::size_t count) : Napi::AsyncWorker(env), count_(count) {}

  protected:
    void Execute() override { ImageMemory::prepare(count_); }

  private:
    std::size_t count_;
};

// Builds an image on libuv's pool, from bytes (kept alive by a reference meanwhile) or from a file.
class BuildWorker : public Napi::AsyncWorker {
  public:
    BuildWorker(Napi::Env env, Napi::Function constructor, std::shared_ptr<Model> model, const Napi::Value & file,
                std::vector<AdapterPair> pairs)
        : Napi::AsyncWorker(env),
          deferred_(Napi::Promise::Deferred::New(env)),
          constructor_(Napi::Persistent(constructor)),
          model_(std::move(model)),
          pairs_(std::move(pairs)) {
        if (file.IsString()) {
            path_ = file.As<Napi::String>().Utf8Value();
            return;
        }
        const auto bytes = file.As<Napi::Uint8Array>();
        file_            = Napi::Persistent(bytes.As<Napi::Object>());
        data_            = bytes.Data();
        bytes_           = bytes.ByteLength();
    }

    Napi::Promise promise() const { return deferred_.Promise(); }

  protected:
    void Execute() override {
        try {
            if (path_.empty()) {
                AdapterBytes bytes(data_, bytes_);
                image_ = AdapterImage::build(*model_, bytes, std::move(pairs_));
            } else {
                AdapterFile file(path_);
                image_ = AdapterImage::build(*model_, file, std::move(pairs_));
            }
        } catch (const Error & e) {
            code_ = e.code();
            SetError(e.what());
        } catch (const std::exception & e) {
            code_ = "out_of_memory";
            SetError(e.what());
        }
    }
    void OnOK() override {
        deferred_.Resolve(constructor_.New({ Napi::External<std::shared_ptr<const AdapterImage>>::New(Env(), &image_) }));
        const std::size_t count = image_->bytes() / sizeof(uint16_t);
        if (!path_.empty() && !ImageMemory::is_prepared(count)) {
            (new SpareWorker(Env(), count))->Queue();
        }
    }
    void OnError(const Napi::Error & e) override {
        e.Value().Set("code", Napi::String::New(Env(), code_));
        deferred_.Reject(e.Value());
    }

  private:
    Napi::Promise::Deferred             deferred_;
    Napi::FunctionReference             constructor_;
    std::shared_ptr<Model>              model_;
    std::string                         path_;  // empty: bytes
    Napi::ObjectReference               file_;
    const uint8_t *                     data_  = nullptr;
    std::size_t                         bytes_ = 0;
    std::vector<AdapterPair>            pairs_;
    std::shared_ptr<const AdapterImage> image_;
    std::string                         code_;
};

}  // namespace

// buildAdapter(ImageClass, file or path, pairs): nine numbers a pair; see packPairs in index.ts
Napi::Value ModelObject::build_adapter(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        constexpr std::size_t    NUMBERS = 9;
        const auto               packed  = info[2].As<Napi::Float64Array>();
        std::vector<AdapterPair> pairs(packed.ElementLength() / NUMBERS);
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            const double * n       = packed.Data() + i * NUMBERS;
            pairs[i].target        = static_cast<Target>(n[0]);
            pairs[i].layer         = static_cast<int>(n[1]);
            pairs[i].rank          = static_cast<int>(n[2]);
            pairs[i].scale         = static_cast<float>(n[3]);
            pairs[i].a_offset      = static_cast<std::size_t>(n[4]);
            pairs[i].a_type        = static_cast<HalfOrFloat>(n[5]);
            pairs[i].b_offset      = static_cast<std::size_t>(n[6]);
            pairs[i].b_type        = static_cast<HalfOrFloat>(n[7]);
            pairs[i].permute_heads = static_cast<int>(n[8]);
        }
        auto *     worker  = new BuildWorker(info.Env(), info[0].As<Napi::Function>(), get(), info[1], std::move(pairs));
        const auto promise = worker->promise();
        worker->Queue();
        return promise;
    });
}

Napi::Value ModelObject::trainer_memory(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto   memory = Trainer::memory(*get(), path_, trainer_options(info[0].As<Napi::Object>()));
        Napi::Object out    = Napi::Object::New(info.Env());
        out.Set("parameters", static_cast<double>(memory.parameters));
        out.Set("activations", static_cast<double>(memory.activations));
        out.Set("transposedWeights", static_cast<double>(memory.transposed));
        return out;
    });
}

Napi::Value ModelObject::close(const Napi::CallbackInfo & info) {
    model_ = nullptr;
    return info.Env().Undefined();
}

}  // namespace mf
