// Registration with Node: one Addon instance per environment (main thread or worker).
#include <napi.h>

#include "bind_engine.hpp"
#include "bind_model.hpp"
#include "bind_quantize.hpp"
#include "bind_trainer.hpp"
#include "bind_vocabulary.hpp"
#include "bindings.hpp"
#include "kernels/kernels.hpp"

namespace mf {

static Napi::Value list_devices_js(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto  devices = list_devices();
        Napi::Array out     = Napi::Array::New(info.Env(), devices.size());
        for (std::size_t i = 0; i < devices.size(); ++i) {
            out.Set(static_cast<uint32_t>(i), device_object(info.Env(), devices[i]));
        }
        return out;
    });
}

// loadBackends(cpuFolder, gpuLibraries[])
static Napi::Value load_backends_js(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        std::vector<std::string> libraries;
        const auto               list = info[1].As<Napi::Array>();
        for (uint32_t i = 0; i < list.Length(); ++i) {
            libraries.push_back(list.Get(i).As<Napi::String>().Utf8Value());
        }
        load_backends(info[0].As<Napi::String>().Utf8Value(), libraries);
        return info.Env().Undefined();
    });
}

class Addon : public Napi::Addon<Addon> {
  public:
    Addon(Napi::Env env, Napi::Object exports) {
        DefineAddon(exports, {});
        exports.Set("loadBackends", Napi::Function::New(env, load_backends_js));
        exports.Set("listDevices", Napi::Function::New(env, list_devices_js));
        exports.Set("kernels", Napi::String::New(env, kernels().name));
        exports.Set("Model", ModelObject::define(env));
        exports.Set("Engine", EngineObject::define(env));
        exports.Set("Trainer", TrainerObject::define(env));
        exports.Set("AdapterImage", ImageObject::define(env));
        exports.Set("Vocabulary", VocabularyObject::define(env));
        exports.Set("convertRows", convert_rows_function(env));
    }
};

NODE_API_ADDON(Addon)

}  // namespace mf
