#include "trainer.hpp"

#include <cmath>
#include <cstring>

#include "../error.hpp"

namespace mf {

static constexpr char MAGIC[8] = { 'm', 'f', 't', 'r', 'a', 'i', 'n', '1' };

// Copies [rows][width] floats, or clears them.
static void copy_rows(Session & session, const float * from, int rows, int width, float * to) {
    session.rows(rows, 16, ELEMENT_MACS / 4 * width, [&](int first, int last) {
        const std::size_t at    = static_cast<std::size_t>(first) * width;
        const std::size_t bytes = sizeof(float) * (last - first) * width;
        if (from != nullptr) {
            std::memcpy(to + at, from + at, bytes);
        } else {
            std::memset(to + at, 0, bytes);
        }
    });
}

Trainer::Trainer(std::shared_ptr<Model> model, const std::string & path, const TrainerOptions & options)
    : model_(std::move(model)),
      options_(options),
      parameters_(*model_, options_),
      transposed_(TransposedModel::open(model_, path)),
      team_(Team::of(model_->backend().threads())),
      blocks_(*model_, transposed_.get(), parameters_, options_),
      head_(*model_, transposed_.get()),
      kept_(model_->h().layers) {
    require(model_->fused(), "architecture_unsupported", "training needs a model loaded on the CPU, and not in exact mode");
    require(parameters_.size() > 0, "argument_invalid", "there is nothing to train");
}

TrainerMemory Trainer::memory(const Model & model, const std::string & path, const TrainerOptions & options) {
    const Parameters  parameters(model, options);
    const std::size_t per_row = Activations::floats_per_row(model, parameters) * sizeof(float);
    const std::size_t input   = model.h().embedding * sizeof(float);
    const std::size_t blocks  = options.recompute ? per_row + input * model.h().layers : per_row * model.h().layers;
    return { parameters.bytes(),
             blocks * options.rows_max + 2 * input * options.rows_max + BlockContext::bytes_for(model, options) +
                 Head::bytes_for(model),
             TransposedModel::bytes_for(model, path) };
}

std::size_t Trainer::bytes() const {
    std::size_t total = parameters_.bytes() + transposed_->bytes() + blocks_.bytes() + head_.bytes() + shared_.bytes() +
                        top_.bytes() + dx_.bytes();
    for (const auto & a : kept_) {
        total += a.bytes();
    }
    return total;
}

RowsInfo Trainer::begin(const TrainingRows & rows, bool adapter, bool dropout) {
    RowsInfo info;
    info.rows     = rows.rows;
    info.examples = rows.examples;
    info.tokens   = rows.tokens;
    info.starts   = rows.starts;
    // Dropout masks depend on the step and the call within it: a step that is begun again after a restart draws the same.
    info.call    = (parameters_.steps() << 24U) + calls_;
    info.adapter = adapter;
    info.dropout = dropout && adapter && options_.dropout > 0;
    info.positions.resize(rows.rows);
    const int first = options_.prefix && adapter ? options_.prefix_tokens : 0;
    for (int e = 0; e < rows.examples; ++e) {
        for (int row = rows.starts[e]; row < rows.starts[e + 1]; ++row) {
            info.positions[row] = first + row - rows.starts[e];
        }
    }
    return info;
}

const float * Trainer::forward(Session & session, const TrainingRows & rows, const RowsInfo & info, bool keep) {
    const auto &      h     = model_->h();
    const int         d     = h.embedding;
    const std::size_t width = static_cast<std::size_t>(rows.rows) * d;
    blocks_.begin(session, info);
    top_.resize(width);
    if (!keep || options_.recompute) {
        shared_.resize(*model_, parameters_, rows.rows, false);
    }
    for (int layer = 0; keep && layer < h.layers; ++layer) {
        kept_[layer].resize(*model_, parameters_, rows.rows, options_.recompute);
    }
    float * x = keep ? kept_[0].x.data() : shared_.x.data();
    session.rows(rows.rows, 1, ELEMENT_MACS * d, [&](int first, int last) {
        for (int row = first; row < last; ++row) {
            embed_token(*model_, rows.tokens[row], x + static_cast<std::size_t>(row) * d);
        }
    });
    for (int layer = 0; layer < h.layers; ++layer) {
        const bool last = layer + 1 == h.layers;
        if (keep && !options_.recompute) {
            blocks_.forward(session, layer, kept_[layer], last ? top_.data() : kept_[layer + 1].x.data());
            continue;
        }
        // One set of activations for all blocks: its input is swapped in, its output goes to the next block's input.
        if (keep) {
            copy_rows(session, kept_[layer].x.data(), rows.rows, d, shared_.x.data());
        }
        blocks_.forward(session, layer, shared_, top_.data());
        if (!last) {
            copy_rows(session, top_.data(), rows.rows, d, keep ? kept_[layer + 1].x.data() : shared_.x.data());
        }
    }
    return top_.data();
}

void Trainer::backward(Session & session) {
    const auto & h = model_->h();
    for (int layer = h.layers - 1; layer >= 0; --layer) {
        if (options_.recompute) {
            copy_rows(session, kept_[layer].x.data(), dx_rows_, h.embedding, shared_.x.data());
            blocks_.forward(session, layer, shared_, top_.data());
        }
        blocks_.backward(session, layer, of(layer), dx_.data(), layer > 0);
    }
}

std::vector<RowLoss> Trainer::counted(const TrainingRows & rows) const {
    std::vector<RowLoss> list;
    for (int row = 0; row + 1 < rows.rows; ++row) {
        if (rows.weights[row] != 0) {
            list.push_back({ row, rows.tokens[row + 1], rows.weights[row] });
        }
    }
    return list;
}

static LossSums sums_of(const std::vector<RowLoss> & list) {
    LossSums sums;
    for (const auto & row : list) {
        sums.loss += row.weight * row.loss;
        sums.weight += row.weight;
        sums.correct += row.correct ? 1 : 0;
        ++sums.counted;
    }
    return sums;
}

LossSums Trainer::accumulate(const TrainingRows & rows, double divisor) {
    TrainingLease  lease(options_.share);
    Session        session(team_, &lease);
    const RowsInfo info = begin(rows, true, true);
    ++calls_;
    auto list = counted(rows);
    if (list.empty()) {
        return {};
    }
    const float * x = forward(session, rows, info, true);
    dx_rows_        = rows.rows;
    dx_.resize(static_cast<std::size_t>(rows.rows) * model_->h().embedding);
    copy_rows(session, nullptr, rows.rows, model_->h().embedding, dx_.data());
    head_.run(session, x, list, dx_.data(), divisor / GRADIENT_SCALE);
    backward(session);
    return sums_of(list);
}

static std::vector<double> by_example(const TrainingRows & rows, const std::vector<RowLoss> & list) {
    std::vector<double> sums(rows.examples, 0.0);
    int                 example = 0;
    for (const auto & row : list) {
        while (row.row >= rows.starts[example + 1]) {
            ++example;
        }
        sums[example] -= row.weight * row.loss;
    }
    return sums;
}

PreferenceSums Trainer::accumulate_preference(const TrainingRows & rows, const double * reference, double beta, double divisor) {
    TrainingLease  lease(options_.share);
    Session        session(team_, &lease);
    const RowsInfo info = begin(rows, true, true);
    ++calls_;
    auto list = counted(rows);
    if (list.empty()) {
        return {};
    }
    const float * x = forward(session, rows, info, true);
    head_.run(session, x, list, nullptr, 1);
    const auto     logs = by_example(rows, list);
    PreferenceSums sums;
    static_cast<LossSums &>(sums) = sums_of(list);
    sums.loss                     = 0;
    sums.weight                   = rows.examples / 2;
    std::vector<double> coefficient(rows.examples);
    for (int pair = 0; pair < rows.examples / 2; ++pair) {
        const int    chosen   = 2 * pair;
        const int    rejected = chosen + 1;
        const double z        = beta * ((logs[chosen] - reference[chosen]) - (logs[rejected] - reference[rejected]));
        sums.loss += z > 0 ? std::log1p(std::exp(-z)) : -z + std::log1p(std::exp(z));
        sums.preferred += z > 0 ? 1 : 0;
        sums.margin += z;
        // d(-ln σ(z)) / d(log-probability) = -β σ(-z) for the chosen answer, and the opposite for the rejected one.
        const double slope    = beta / (1.0 + std::exp(z));
        coefficient[chosen]   = slope;
        coefficient[rejected] = -slope;
    }
    int example = 0;
    for (auto & row : list) {
        while (row.row >= rows.starts[example + 1]) {
            ++example;
        }
        row.weight *= static_cast<float>(coefficient[example]);
    }
    dx_rows_ = rows.rows;
    dx_.resize(static_cast<std::size_t>(rows.rows) * model_->h().embedding);
    copy_rows(session, nullptr, rows.rows, model_->h().embedding, dx_.data());
    head_.run(session, x, list, dx_.data(), divisor / GRADIENT_SCALE);
    backward(session);
    return sums;
}

LossSums Trainer::evaluate(const TrainingRows & rows, bool adapter) {
    TrainingLease lease(options_.share);
    Session       session(team_, &lease);
    auto          list = counted(rows);
    if (!list.empty()) {
        head_.run(session, forward(session, rows, begin(rows, adapter, false), false), list, nullptr, 1);
    }
    return sums_of(list);
}

std::vector<double> Trainer::log_probabilities(const TrainingRows & rows, bool adapter) {
    TrainingLease lease(options_.share);
    Session       session(team_, &lease);
    auto          list = counted(rows);
    if (!list.empty()) {
        head_.run(session, forward(session, rows, begin(rows, adapter, false), false), list, nullptr, 1);
    }
    return by_example(rows, list);
}

Parameters::Update Trainer::update(const UpdateOptions & options) {
    TrainingLease lease(options_.share);
    Session       session(team_, &lease);
    calls_ = 0;
    return parameters_.update(session, options);
}

std::vector<uint8_t> Trainer::snapshot() const {
    std::vector<uint8_t> bytes(MAGIC, MAGIC + sizeof MAGIC);
    parameters_.write(bytes);
    return bytes;
}

void Trainer::restore(const uint8_t * bytes, std::size_t size) {
    require(size >= sizeof MAGIC && std::memcmp(bytes, MAGIC, sizeof MAGIC) == 0, "argument_invalid",
            "this is not a trainer's snapshot");
    const std::size_t read = parameters_.read(bytes + sizeof MAGIC, size - sizeof MAGIC);
    require(read == size - sizeof MAGIC, "argument_invalid", "the snapshot has more in it than a trainer of this shape");
    calls_ = 0;
}

}  // namespace mf
