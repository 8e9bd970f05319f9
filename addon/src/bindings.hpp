// Helpers of the JavaScript bindings: errors with codes, and plain objects.
#pragma once

#include <napi.h>

#include <string>

#include "backends.hpp"
#include "error.hpp"

namespace mf {

// Runs `f`, turning C++ exceptions into JavaScript errors that carry a `code`. In a thread that is being terminated no
// JavaScript can run, not even to make an error; then nothing is thrown, since nobody would hear it.
template <typename F> Napi::Value guarded(Napi::Env env, F f) {
    const auto fail = [&](const std::string & code, const char * message) {
        try {
            Napi::Error error = Napi::Error::New(env, message);
            error.Set("code", Napi::String::New(env, code));
            error.ThrowAsJavaScriptException();
        } catch (const Napi::Error &) {
        }
        return env.Undefined();
    };
    try {
        return f();
    } catch (const Error & e) {
        return fail(e.code(), e.what());
    } catch (const std::bad_alloc &) {
        return fail("out_of_memory", "not enough memory");
    } catch (const Napi::Error & e) {
        try {
            e.ThrowAsJavaScriptException();
        } catch (const Napi::Error &) {
        }
        return env.Undefined();
    } catch (const std::exception & e) {
        return fail("compute_failed", e.what());
    }
}

inline Napi::Object device_object(Napi::Env env, const Device & d) {
    Napi::Object o = Napi::Object::New(env);
    o.Set("name", d.name);
    o.Set("description", d.description);
    o.Set("kind", d.kind);
    o.Set("memoryTotalBytes", static_cast<double>(d.memory_total));
    o.Set("memoryFreeBytes", static_cast<double>(d.memory_free));
    o.Set("software", d.software);
    return o;
}

inline double      number(const Napi::Object & o, const char * key) { return o.Get(key).As<Napi::Number>().DoubleValue(); }
inline int         integer(const Napi::Object & o, const char * key) { return o.Get(key).As<Napi::Number>().Int32Value(); }
inline bool        flag(const Napi::Object & o, const char * key) { return o.Get(key).ToBoolean().Value(); }
inline std::string text(const Napi::Object & o, const char * key) { return o.Get(key).As<Napi::String>().Utf8Value(); }

}  // namespace mf
