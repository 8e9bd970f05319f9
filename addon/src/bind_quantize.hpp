// convertRows of addon/quantize.ts.
#pragma once

#include <napi.h>

namespace mf {

Napi::Function convert_rows_function(Napi::Env env);

}  // namespace mf
