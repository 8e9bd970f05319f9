#pragma once

#include <napi.h>

#include "adapter_image.hpp"
#include "model.hpp"

namespace mf {

class ImageObject : public Napi::ObjectWrap<ImageObject> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit ImageObject(const Napi::CallbackInfo & info);
    std::shared_ptr<const AdapterImage> get() const;

    static ImageObject * unwrap(const Napi::Value & value);

  private:
    Napi::Value bytes(const Napi::CallbackInfo & info);
    Napi::Value rank_max(const Napi::CallbackInfo & info);
    Napi::Value release(const Napi::CallbackInfo & info);

    std::shared_ptr<const AdapterImage> image_;
    std::size_t                         bytes_    = 0;
    int                                 rank_max_ = 0;
};

class ModelObject : public Napi::ObjectWrap<ModelObject> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit ModelObject(const Napi::CallbackInfo & info);
    std::shared_ptr<Model> get() const;
    const std::string &    path() const { return path_; }

    static ModelObject * unwrap(const Napi::Value & value);

  private:
    Napi::Value facts(const Napi::CallbackInfo & info);
    Napi::Value build_adapter(const Napi::CallbackInfo & info);
    Napi::Value trainer_memory(const Napi::CallbackInfo & info);
    Napi::Value close(const Napi::CallbackInfo & info);

    std::shared_ptr<Model> model_;
    std::string            path_;
};

}  // namespace mf
