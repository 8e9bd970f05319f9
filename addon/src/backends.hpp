// ggml's backends: loaded once per process, chosen at run time.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <memory>
#include <string>
#include <vector>

namespace mf {

struct Device {
    std::string        name;
    std::string        description;
    std::string        kind;  // cpu, gpu, igpu, accel
    std::size_t        memory_total = 0;
    std::size_t        memory_free  = 0;
    bool               software     = false;
    ggml_backend_dev_t handle       = nullptr;
};

// Loads the CPU library that fits this processor from `cpu_folder`, and each GPU backend library by file. What is already
// loaded is left alone, so every thread may call this.
void load_backends(const std::string & cpu_folder, const std::vector<std::string> & gpu_libraries);

// ggml and libllama report to stderr by default; only what went wrong is worth a line. For ggml_log_set and llama_log_set.
void log_errors_only(ggml_log_level level, const char * text, void *);

std::vector<Device> list_devices();

// auto | cpu | vulkan | cuda | metal. `auto` takes a real GPU if there is one, else the CPU.
Device choose_device(const std::string & choice);

// A backend instance that computes graphs; on the CPU with its own pool of threads.
class Backend {
  public:
    Backend(const Device & device, int threads);
    ~Backend();
    Backend(const Backend &)             = delete;
    Backend & operator=(const Backend &) = delete;

    ggml_backend_t             handle() const { return handle_; }
    ggml_backend_buffer_type_t buffer_type() const;
    const Device &             device() const { return device_; }
    bool                       is_cpu() const { return device_.kind == "cpu"; }
    int                        threads() const { return threads_; }

    // Buffer types that keep weights in a faster layout (repacked, AMX); empty off the CPU.
    std::vector<ggml_backend_buffer_type_t> extra_buffer_types() const;

    // The fastest buffer type whose product with such a weight the device supports; `extra`: it is one of the above.
    ggml_backend_buffer_type_t product_buffer_type(ggml_type weight, int64_t in, int64_t out, bool * extra) const;

    // Computes as serving, which waits for its turn on the cores if it needs them.
    void compute(ggml_cgraph * graph);
    // Computes for somebody who holds the cores already.
    void compute_held(ggml_cgraph * graph);

  private:
    bool supports_product(ggml_backend_buffer_type_t type, ggml_type weight, int64_t in, int64_t out) const;

    Device            device_;
    int               threads_            = 1;
    ggml_backend_t    handle_             = nullptr;
    ggml_threadpool * pool_               = nullptr;
    void (*pool_free_)(ggml_threadpool *) = nullptr;
};

}  // namespace mf
