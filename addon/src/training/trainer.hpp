// Trains low-rank pairs or a prefix over a frozen base that serving may use at the same time.
#pragma once

#include <memory>

#include "block.hpp"
#include "loss.hpp"

namespace mf {

struct TrainingRows {
    const int32_t * tokens;
    const int32_t * starts;
    const float *   weights;
    int             rows;
    int             examples;
};

struct LossSums {
    double loss    = 0;
    double weight  = 0;
    int    correct = 0;
    int    counted = 0;
};

struct PreferenceSums : LossSums {
    int    preferred = 0;
    double margin    = 0;
};

struct TrainerMemory {
    std::size_t parameters;
    std::size_t activations;
    std::size_t transposed;
};

class Trainer {
  public:
    Trainer(std::shared_ptr<Model> model, const std::string & path, const TrainerOptions & options);

    static TrainerMemory memory(const Model & model, const std::string & path, const TrainerOptions & options);

    const TrainerOptions & options() const { return options_; }
    const Model &          model() const { return *model_; }
    Parameters &           parameters() { return parameters_; }
    // Numbers that are trained, without the padding between arrays.
    std::size_t trained() const { return parameters_.trained(); }
    std::size_t bytes() const;

    LossSums            accumulate(const TrainingRows & rows, double divisor);
    PreferenceSums      accumulate_preference(const TrainingRows & rows, const double * reference, double beta, double divisor);
    LossSums            evaluate(const TrainingRows & rows, bool adapter);
    std::vector<double> log_probabilities(const TrainingRows & rows, bool adapter);
    Parameters::Update  update(const UpdateOptions & options);

    std::vector<uint8_t> snapshot() const;
    void                 restore(const uint8_t * bytes, std::size_t size);

  private:
    RowsInfo begin(const TrainingRows & rows, bool adapter, bool dropout);
    // The last block's output. `keep`: activations stay for the way back.
    const float *        forward(Session & session, const TrainingRows & rows, const RowsInfo & info, bool keep);
    void                 backward(Session & session);
    std::vector<RowLoss> counted(const TrainingRows & rows) const;
    Activations &        of(int layer) { return options_.recompute ? shared_ : kept_[layer]; }

    std::shared_ptr<Model>           model_;
    TrainerOptions                   options_;
    Parameters                       parameters_;
    std::shared_ptr<TransposedModel> transposed_;
    Team &                           team_;
    BlockContext                     blocks_;
    Head                             head_;
    std::vector<Activations>         kept_;    // one for each block; with recomputation only their inputs
    Activations                      shared_;  // of the block under way, where they are not kept
    Floats                           top_;     // output of the last block
    Floats                           dx_;
    int                              dx_rows_ = 0;
    uint64_t                         calls_   = 0;  // of accumulate since the last update
};

}  // namespace mf
