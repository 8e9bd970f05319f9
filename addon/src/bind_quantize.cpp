// Rows of weights from one ggml type to another, with a low-rank change on the way: for merged models and 4-bit bases.
#include "bind_quantize.hpp"

#include <ggml.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "bindings.hpp"
#include "cores.hpp"
#include "team.hpp"

namespace mf {

namespace {

// What is added to the rows: scale · B · A, with A of [rank, width] and B of [rows, rank], both row-major.
struct LowRank {
    const float * a     = nullptr;
    const float * b     = nullptr;
    int64_t       rank  = 0;
    float         scale = 0.0f;
};

// What ggml_quantize_chunk makes without an importance matrix; asked for anything else, ggml ends the process.
constexpr ggml_type TARGET_TYPES[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,   GGML_TYPE_Q3_K,
    GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};
// So many values are expanded at a time.
constexpr int64_t BLOCK_VALUES = 16384;
constexpr float   HALF_MAX     = 65504.0f;

ggml_type source_type(int number) {
    const bool known = number >= 0 && number < GGML_TYPE_COUNT;
    require(known && (number == GGML_TYPE_F32 || ggml_get_type_traits(static_cast<ggml_type>(number))->to_float != nullptr),
            "argument_invalid", "rows of type " + std::to_string(number) + " cannot be read");
    return static_cast<ggml_type>(number);
}

ggml_type target_type(int number) {
    for (const ggml_type type : TARGET_TYPES) {
        if (type == number) {
            return type;
        }
    }
    throw Error("argument_invalid", "rows cannot be made into type " + std::to_string(number));
}

bool all_within(const std::vector<float> & values, std::size_t count, float most) {
    for (std::size_t i = 0; i < count; ++i) {
        if (!(std::fabs(values[i]) <= most)) {
            return false;
        }
    }
    return true;
}

// One thread's share of the rows. False: a value is NaN, infinite, or too large for the type.
bool convert(ggml_type from, ggml_type to, const uint8_t * source, uint8_t * target, int64_t first, int64_t end, int64_t width,
             const LowRank & change) {
    const int64_t      step = std::max<int64_t>(1, BLOCK_VALUES / width);
    std::vector<float> values(static_cast<std::size_t>(step * width));
    const std::size_t  source_row = ggml_row_size(from, width);
    const std::size_t  target_row = ggml_row_size(to, width);
    const float        most       = to == GGML_TYPE_F16 || ggml_is_quantized(to) ? HALF_MAX : std::numeric_limits<float>::max();
    for (int64_t at = first; at < end; at += step) {
        const int64_t   rows  = std::min(step, end - at);
        const auto      count = static_cast<std::size_t>(rows * width);
        const uint8_t * in    = source + static_cast<std::size_t>(at) * source_row;
        if (from == GGML_TYPE_F32) {
            std::memcpy(values.data(), in, count * sizeof(float));
        } else {
            ggml_get_type_traits(from)->to_float(in, values.data(), static_cast<int64_t>(count));
        }
        for (int64_t r = 0; r < rows; ++r) {
            float * row = values.data() + r * width;
            for (int64_t k = 0; k < change.rank; ++k) {
                const float   factor = change.scale * change.b[(at + r) * change.rank + k];
                const float * a      = change.a + k * width;
                for (int64_t i = 0; i < width; ++i) {
                    row[i] += factor * a[i];
                }
            }
        }
        if (!all_within(values, count, most)) {
            return false;
        }
        ggml_quantize_chunk(to, values.data(), target + static_cast<std::size_t>(at) * target_row, 0, rows, width, nullptr);
    }
    return true;
}

// A typed array's values; its length is checked against what the rows need.
const float * floats(const Napi::Value & value, int64_t expected, const char * name) {
    require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array, "argument_invalid",
            std::string(name) + " must be a Float32Array");
    const auto array = value.As<Napi::Float32Array>();
    require(static_cast<int64_t>(array.ElementLength()) == expected, "argument_invalid",
            std::string(name) + " has " + std::to_string(array.ElementLength()) + " values where " + std::to_string(expected) +
                " are due");
    return array.Data();
}

// convertRows(from, to, bytes, width, threads, change | null, share | null) → bytes
Napi::Value convert_rows_js(const Napi::CallbackInfo & info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
        const auto from    = source_type(info[0].As<Napi::Number>().Int32Value());
        const auto to      = target_type(info[1].As<Napi::Number>().Int32Value());
        const auto bytes   = info[2].As<Napi::Uint8Array>();
        const auto width   = info[3].As<Napi::Number>().Int64Value();
        const auto threads = info[4].As<Napi::Number>().Int64Value();
        require(width > 0 && width % ggml_blck_size(from) == 0 && width % ggml_blck_size(to) == 0, "argument_invalid",
                "rows of " + std::to_string(width) + " do not divide into the blocks of " + ggml_type_name(from) + " and " +
                    ggml_type_name(to));
        const std::size_t source_row = ggml_row_size(from, width);
        require(bytes.ByteLength() > 0 && bytes.ByteLength() % source_row == 0, "argument_invalid",
                std::to_string(bytes.ByteLength()) + " bytes are no whole number of rows");
        const auto rows = static_cast<int64_t>(bytes.ByteLength() / source_row);
        LowRank    change;
        if (info[5].IsObject()) {
            const auto o = info[5].As<Napi::Object>();
            change.rank  = integer(o, "rank");
            change.scale = static_cast<float>(number(o, "scale"));
            change.a     = floats(o.Get("a"), change.rank * width, "a");
            change.b     = floats(o.Get("b"), change.rank * rows, "b");
        }
        // Tables that some types need; made once, under ggml's own lock, before threads read them.
        ggml_quantize_init(to);
        auto out = Napi::Uint8Array::New(info.Env(), ggml_row_size(to, width) * static_cast<std::size_t>(rows));

        const auto sound_or_throw = [&](bool sound) {
            require(sound, "compute_failed", std::string("a weight is NaN, infinite or too large for ") + ggml_type_name(to));
        };
        if (info[6].IsNumber()) {
            // Beside an engine: turns are taken with it and with training, as training takes them, between small pieces.
            TrainingLease     lease(info[6].As<Napi::Number>().FloatValue());
            Session           session(Team::of(static_cast<int>(threads)), &lease);
            const int64_t     step = std::max<int64_t>(1, BLOCK_VALUES / width);
            std::atomic<bool> sound{ true };
            const double      work = static_cast<double>(width) * (ELEMENT_MACS + FLOAT_MACS * static_cast<double>(change.rank));
            session.rows(static_cast<int>(rows), static_cast<int>(step), work, [&](int first, int last) {
                if (!convert(from, to, bytes.Data(), out.Data(), first, last, width, change)) {
                    sound = false;
                }
            });
            sound_or_throw(sound);
            return out;
        }
        const int64_t            parts = std::max<int64_t>(1, std::min(threads, rows));
        std::vector<char>        sound(static_cast<std::size_t>(parts), 0);
        std::vector<std::thread> helpers;
        const auto               share = [&](int64_t part) {
            sound[static_cast<std::size_t>(part)] =
                convert(from, to, bytes.Data(), out.Data(), rows * part / parts, rows * (part + 1) / parts, width, change);
        };
        for (int64_t part = 1; part < parts; ++part) {
            helpers.emplace_back(share, part);
        }
        share(0);
        for (auto & helper : helpers) {
            helper.join();
        }
        sound_or_throw(std::all_of(sound.begin(), sound.end(), [](char ok) { return ok != 0; }));
        return out;
    });
}

}  // namespace

Napi::Function convert_rows_function(Napi::Env env) { return Napi::Function::New(env, convert_rows_js); }

}  // namespace mf
