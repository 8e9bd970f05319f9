// Products with the frozen base weights: forward with the weights that serving uses, backward with transposed copies.
#pragma once

#include <string>

#include "../model.hpp"
#include "session.hpp"

namespace mf {

// An input rounded to 8 bits for packed products, and its block sums for corrected ones. Grows as needed.
struct RoundedRows {
    std::vector<int8_t>  quants;
    std::vector<float>   scales;
    std::vector<float>   sums;
    std::vector<int32_t> counts;
    int                  in = 0;

    void          resize(int rows, int width);
    void          round(const float * x, std::size_t stride, int first, int last);
    QuantizedRows view() const { return { quants.data(), scales.data(), sums.data(), counts.data(), in }; }
    std::size_t   bytes() const { return quants.size() + (scales.size() + sums.size() + counts.size()) * 4; }
};

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

    int           in  = 0;
    int           out = 0;
    const Packed & matrix() const { return packed_; }
    ggml_tensor * weight() const { return weight_; }

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

// Outputs of all targets of a site side by side, in the order of its parts.
struct SiteShape {
    int in  = 0;
    int out = 0;
    int offset[3] = { 0, 0, 0 };  // of each target, by its index within the site
    int width[3]  = { 0, 0, 0 };
};
SiteShape shape_of(const Site & site);

// Called for a range of output columns when they are done: adds what belongs to them while they are in the cache.
using ColumnsDone = std::function<void(int first, int last)>;

// y [rows, out] = W x for a packed matrix, x already rounded. `y_offset`: first column.
void product_packed(Session & session, const PackedMatrix & matrix, const RoundedRows & x, int rows, float * y,
                    std::size_t y_stride, const ColumnsDone & done);
// y [rows, out] (contiguous) = W x through ggml.
void product_ggml(Session & session, Backend & backend, ggml_tensor * weight, const float * x, int rows, float * y);

}  // namespace mf
