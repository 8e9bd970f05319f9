#include "backends.hpp"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <set>

#include "cores.hpp"
#include "error.hpp"

namespace mf {

void log_errors_only(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

void load_backends(const std::string & cpu_folder, const std::vector<std::string> & gpu_libraries) {
    static std::mutex                 guard;
    static std::set<std::string>      loaded;
    const std::lock_guard<std::mutex> lock(guard);
    ggml_log_set(log_errors_only, nullptr);
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        ggml_backend_load_all_from_path(cpu_folder.c_str());
    }
    for (const auto & file : gpu_libraries) {
        if (loaded.insert(file).second) {
            ggml_backend_load(file.c_str());  // a backend without a driver registers nothing, which is fine
        }
    }
    require(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr, "no_device",
            "ggml's CPU library could not be loaded from " + cpu_folder + "; run `modelfactory doctor`");
}

static bool is_software(const std::string & description) {
    std::string lower = description;
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    for (const char * name : { "llvmpipe", "lavapipe", "swiftshader", "softpipe", "software" }) {
        if (lower.find(name) != std::string::npos) {
            return true;
        }
    }
    return false;
}

std::vector<Device> list_devices() {
    std::vector<Device> devices;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t handle = ggml_backend_dev_get(i);
        Device             d;
        d.handle      = handle;
        d.name        = ggml_backend_dev_name(handle);
        d.description = ggml_backend_dev_description(handle);
        ggml_backend_dev_memory(handle, &d.memory_free, &d.memory_total);
        switch (ggml_backend_dev_type(handle)) {
            case GGML_BACKEND_DEVICE_TYPE_CPU:
                d.kind = "cpu";
                break;
            case GGML_BACKEND_DEVICE_TYPE_GPU:
                d.kind = "gpu";
                break;
            case GGML_BACKEND_DEVICE_TYPE_IGPU:
                d.kind = "igpu";
                break;
            default:
                d.kind = "accel";
                break;
        }
        d.software = is_software(d.description);
        devices.push_back(d);
    }
    return devices;
}

Device choose_device(const std::string & choice) {
    const auto devices = list_devices();
    const auto find    = [&](auto && accept) -> const Device * {
        for (const auto & d : devices) {
            if (accept(d)) {
                return &d;
            }
        }
        return nullptr;
    };
    const Device * cpu = find([](const Device & d) { return d.kind == "cpu"; });
    if (choice == "cpu") {
        require(cpu != nullptr, "no_device", "ggml found no CPU backend");
        return *cpu;
    }
    if (choice == "auto") {
        for (const char * kind : { "gpu", "igpu" }) {
            if (const Device * gpu = find([&](const Device & d) { return d.kind == kind && !d.software; })) {
                return *gpu;
            }
        }
        require(cpu != nullptr, "no_device", "ggml found no CPU backend");
        return *cpu;
    }
    const std::string prefix = choice == "vulkan" ? "Vulkan" : choice == "cuda" ? "CUDA" : "Metal";
    const Device *    gpu    = find([&](const Device & d) {
        return (d.kind == "gpu" || d.kind == "igpu") &&
               (d.name.rfind(prefix, 0) == 0 || (choice == "metal" && d.name.rfind("MTL", 0) == 0));
    });
    // Software Vulkan renderers report themselves as CPUs; they are taken only when asked for by name.
    if (gpu == nullptr) {
        gpu = find([&](const Device & d) { return d.name.rfind(prefix, 0) == 0; });
    }
    require(gpu != nullptr, "no_device",
            "MODELFACTORY_DEVICE=" + choice +
                " was asked for, but ggml finds no such device; `modelfactory doctor` lists what it finds");
    return *gpu;
}

Backend::Backend(const Device & device, int threads) : device_(device), threads_(std::max(1, threads)) {
    handle_ = ggml_backend_dev_init(device.handle, nullptr);
    require(handle_ != nullptr, "no_device", "the device " + device.name + " could not be opened");
    if (!is_cpu()) {
        return;
    }
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device.handle);
    using SetThreads       = void (*)(ggml_backend_t, int);
    using PoolNew          = ggml_threadpool * (*) (ggml_threadpool_params *);
    using SetPool          = void (*)(ggml_backend_t, ggml_threadpool *);
    auto set_threads       = reinterpret_cast<SetThreads>(ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    auto pool_new          = reinterpret_cast<PoolNew>(ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_new"));
    auto set_pool          = reinterpret_cast<SetPool>(ggml_backend_reg_get_proc_address(reg, "ggml_backend_cpu_set_threadpool"));
    pool_free_ = reinterpret_cast<void (*)(ggml_threadpool *)>(ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_free"));
    if (set_threads != nullptr) {
        set_threads(handle_, threads_);
    }
    if (pool_new != nullptr && set_pool != nullptr && pool_free_ != nullptr) {
        ggml_threadpool_params params = ggml_threadpool_params_default(threads_);
        // A short poll: idle workers spin for well under a millisecond, then leave the core to JavaScript.
        params.poll = 1;
        pool_       = pool_new(&params);
        set_pool(handle_, pool_);
    }
}

Backend::~Backend() {
    if (handle_ != nullptr) {
        ggml_backend_free(handle_);
    }
    if (pool_ != nullptr) {
        pool_free_(pool_);
    }
}

ggml_backend_buffer_type_t Backend::buffer_type() const { return ggml_backend_get_default_buffer_type(handle_); }

std::vector<ggml_backend_buffer_type_t> Backend::extra_buffer_types() const {
    std::vector<ggml_backend_buffer_type_t> types;
    if (!is_cpu()) {
        return types;
    }
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device_.handle);
    auto               get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
    if (get == nullptr) {
        return types;
    }
    for (ggml_backend_buffer_type_t * t = get(device_.handle); t != nullptr && *t != nullptr; ++t) {
        types.push_back(*t);
    }
    return types;
}

bool Backend::supports_product(ggml_backend_buffer_type_t type, ggml_type weight, int64_t in, int64_t out) const {
    ggml_init_params params = { ggml_tensor_overhead() * 8, nullptr, true };
    ggml_context *   ctx    = ggml_init(params);
    ggml_tensor *    w      = ggml_new_tensor_2d(ctx, weight, in, out);
    ggml_tensor *    x      = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, in, 8);
    ggml_tensor *    y      = ggml_mul_mat(ctx, w, x);
    // An empty buffer of the type is how ggml is asked, as llama.cpp does.
    w->buffer       = ggml_backend_buft_alloc_buffer(type, 0);
    const bool good = w->buffer != nullptr && ggml_backend_dev_supports_op(device_.handle, y);
    ggml_backend_buffer_free(w->buffer);
    ggml_free(ctx);
    return good;
}

ggml_backend_buffer_type_t Backend::product_buffer_type(ggml_type weight, int64_t in, int64_t out, bool * extra) const {
    for (ggml_backend_buffer_type_t type : extra_buffer_types()) {
        if (supports_product(type, weight, in, out)) {
            *extra = true;
            return type;
        }
    }
    *extra = false;
    return buffer_type();
}

void Backend::compute(ggml_cgraph * graph) {
    if (!is_cpu()) {
        compute_held(graph);  // the cores are free meanwhile
        return;
    }
    const ServingLease lease;
    compute_held(graph);
}

void Backend::compute_held(ggml_cgraph * graph) {
    const ggml_status status = ggml_backend_graph_compute(handle_, graph);
    require(status == GGML_STATUS_SUCCESS, "compute_failed",
            std::string("the device could not compute a step: ") + ggml_status_to_string(status));
}

}  // namespace mf
