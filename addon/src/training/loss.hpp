// The head and the loss: final norm, logits and cross-entropy for the rows that count, some rows at a time, so that the logits
// are never whole in memory.
#pragma once

#include "frozen.hpp"

namespace mf {

struct RowLoss {
    int    row;
    int    target;
    float  weight;
    double loss    = 0;  // -ln p(target)
    bool   correct = false;
};

class Head {
  public:
    Head(const Model & model, const TransposedModel * transposed);

    // Fills loss and correct of every row. With `dx` [rows][embedding] (cleared by the caller) also adds the gradient of
    // Σ weight · loss / divisor.
    void run(Session & session, const float * x, std::vector<RowLoss> & rows, float * dx, double divisor);

    std::size_t        bytes() const;
    static std::size_t bytes_for(const Model & model);

  private:
    const Model &           model_;
    const Hyperparameters & h_;
    const TransposedModel * transposed_;
    RoundedRows             rounded_;
    Floats                  normed_;
    Floats                  logits_;
    Floats                  d_normed_;
};

}  // namespace mf
