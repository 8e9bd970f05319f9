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
        image_    = *info[0].As<Napi::External<std::shared_ptr<const AdapterImage>>>().Data();
        bytes_    = image_->bytes();
        rank_max_ = image_->rank_max();
        info.This().As<Napi::Object>().TypeTag(&IMAGE_TAG);
        Napi::MemoryManagement::AdjustExternalMemory(info.Env(), static_cast<int64_t>(bytes_));
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
    Finalize(info.Env());
    return info.Env().Undefined();
}

void ImageObject::Finalize(Napi::Env env) {
    if (image_ != nullptr) {
        image_ = nullptr;
        Napi::MemoryManagement::AdjustExternalMemory(env, -static_cast<int64_t>(bytes_));
    }
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

// Builds an image on libuv's pool; the file's bytes are kept alive by a reference meanwhile.
class BuildWorker : public Napi::AsyncWorker {
  public:
    BuildWorker(Napi::Env env, Napi::Function constructor, std::shared_ptr<Model> model, const Napi::Uint8Array & file,
                std::vector<AdapterPair> pairs)
        : Napi::AsyncWorker(env),
          deferred_(Napi::Promise::Deferred::New(env)),
          constructor_(Napi::Persistent(constructor)),
          model_(std::move(model)),
          file_(Napi::Persistent(file.As<Napi::Object>())),
          data_(file.Data()),
          bytes_(file.ByteLength()),
          pairs_(std::move(pairs)) {}

    Napi::Promise promise() const { return deferred_.Promise(); }

  protected:
    void Execute() override {
        try {
            image_ = AdapterImage::build(*model_, data_, bytes_, std::move(pairs_));
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
    }
    void OnError(const Napi::Error & e) override {
        e.Value().Set("code", Napi::String::New(Env(), code_));
        deferred_.Reject(e.Value());
    }

  private:
    Napi::Promise::Deferred             deferred_;
    Napi::FunctionReference             constructor_;
    std::shared_ptr<Model>              model_;
    Napi::ObjectReference               file_;
    const uint8_t *                     data_;
    std::size_t                         bytes_;
    std::vector<AdapterPair>            pairs_;
    std::shared_ptr<const AdapterImage> image_;
    std::string                         code_;
};

HalfOrFloat float_type(const std::string & name) {
    require(name == "f32" || name == "f16" || name == "bf16", "adapter_invalid", "adapter tensors must be f32, f16 or bf16");
    return name == "f32" ? HalfOrFloat::f32 : name == "f16" ? HalfOrFloat::f16 : HalfOrFloat::bf16;
}

}  // namespace

// buildAdapter(ImageClass, file, pairs[]): targets as indices of TARGETS
Napi::Value ModelObject::build_adapter(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto               list = info[2].As<Napi::Array>();
        std::vector<AdapterPair> pairs;
        for (uint32_t i = 0; i < list.Length(); ++i) {
            const auto  in = list.Get(i).As<Napi::Object>();
            const auto  a  = in.Get("a").As<Napi::Object>();
            const auto  b  = in.Get("b").As<Napi::Object>();
            AdapterPair pair;
            pair.target        = static_cast<Target>(integer(in, "target"));
            pair.layer         = integer(in, "layer");
            pair.rank          = integer(in, "rank");
            pair.scale         = static_cast<float>(number(in, "scale"));
            pair.a_offset      = static_cast<std::size_t>(number(a, "offset"));
            pair.a_type        = float_type(text(a, "dtype"));
            pair.b_offset      = static_cast<std::size_t>(number(b, "offset"));
            pair.b_type        = float_type(text(b, "dtype"));
            pair.permute_heads = integer(in, "permuteHeads");
            pairs.push_back(pair);
        }
        auto * worker =
            new BuildWorker(info.Env(), info[0].As<Napi::Function>(), get(), info[1].As<Napi::Uint8Array>(), std::move(pairs));
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
