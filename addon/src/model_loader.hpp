// Reads a GGUF file into device buffers, in the layout the device computes fastest with.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "model.hpp"

namespace mf {

class ModelLoader {
  public:
    ModelLoader(Model & model, const std::string & path);
    ~ModelLoader();
    void load();

  private:
    // A tensor of the device and how its bytes come about.
    struct Pending {
        ggml_tensor *            tensor;
        std::vector<std::string> sources;  // file tensors, stacked by rows
        bool                     split;    // Q4_1 in the file, Q4_0 on the device
        Part *                   part;     // where the correction of a split weight goes
    };
    // A matrix that is packed for our own kernels instead.
    struct PendingPack {
        Packed *                 packed;
        ggml_type                type;
        std::vector<std::string> sources;
    };

    ggml_tensor * file_tensor(const std::string & name, bool required) const;
    ggml_tensor * declare(ggml_backend_buffer_type_t type, const std::vector<std::string> & sources, bool split, Part * part);
    ggml_tensor * norm(const std::string & name, int width);
    void          declare_site(Site & site, SiteId id, int layer);
    void          declare_layer(int layer);
    void          place(Part & part, const std::vector<std::string> & sources, int in);
    void          read(const std::string & name, std::vector<uint8_t> & bytes);
    void          fill(const Pending & pending);
    void          fill(const PendingPack & pending);
    void          pack(Packed & packed, const std::vector<std::string> & sources, int in, int out);
    void          refuse_unused() const;

    Model &                                              model_;
    std::FILE *                                          file_ = nullptr;
    gguf_context *                                       gguf_ = nullptr;
    ggml_context *                                       meta_ = nullptr;
    std::map<ggml_backend_buffer_type_t, ggml_context *> contexts_;
    std::vector<Pending>                                 pending_;
    std::vector<PendingPack>                             pending_packs_;
    std::map<std::string, bool>                          used_;
};

}  // namespace mf
