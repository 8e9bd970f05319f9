// Products with the frozen base weights: forward with the weights that serving uses, backward with transposed copies.
#pragma once

#include <string>

#include "../products.hpp"

namespace mf {

// W^T of a site (its targets' outputs stacked as inputs), or of the head: dx = W^T dy. Quantised bases are transposed in 8 bits.
class Transposed {
  public:
    Transposed() = default;
    ~Transposed();
    Transposed(const Transposed &)             = delete;
    Transposed & operator=(const Transposed &) = delete;

    // `sources`: tensors of the file [in_i = out, out_i], stacked.
    void        load(const Model & model, const class WeightFile & file, const std::vector<std::string> & sources);
    bool        packed() const { return !packed_.empty(); }
    std::size_t bytes() const { return bytes_; }

    int            in  = 0;
    int            out = 0;
    const Packed & matrix() const { return packed_; }
    ggml_tensor *  weight() const { return weight_; }

    // Bytes that such a copy will take.
    static std::size_t bytes_for(const Model & model, ggml_type base, int in, int out);

  private:
    static ggml_type      type_for(ggml_type base, int in);
    Packed                packed_;
    ggml_context *        context_ = nullptr;
    ggml_backend_buffer_t buffer_  = nullptr;
    ggml_tensor *         weight_  = nullptr;
    std::size_t           bytes_   = 0;
};

// Reads weights of a GGUF file as float32, by rows.
class WeightFile {
  public:
    explicit WeightFile(const std::string & path);
    ~WeightFile();
    WeightFile(const WeightFile &)             = delete;
    WeightFile & operator=(const WeightFile &) = delete;

    bool                has(const std::string & name) const;
    const ggml_tensor * shape(const std::string & name) const;
    std::vector<float>  read(const std::string & name) const;

  private:
    std::FILE *    file_ = nullptr;
    gguf_context * gguf_ = nullptr;
    ggml_context * meta_ = nullptr;
};

// All of a model's transposed weights. Made once per model and shared by its trainers.
class TransposedModel {
  public:
    static std::shared_ptr<TransposedModel> open(const std::shared_ptr<Model> & model, const std::string & path);

    const Transposed & site(int layer, SiteId id) const { return *sites_[static_cast<std::size_t>(layer) * SITE_COUNT + id]; }
    const Transposed & head() const { return head_; }
    std::size_t        bytes() const;
    static std::size_t bytes_for(const Model & model, const std::string & path);

  private:
    std::vector<std::unique_ptr<Transposed>> sites_;
    Transposed                               head_;
};

}  // namespace mf
