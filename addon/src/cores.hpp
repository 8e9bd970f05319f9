// Who computes. ggml's barriers spin, so two graphs never run side by side: serving and training take turns by policy.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace mf {

// The process-wide owner of the cores. Serving goes first; training gets everything while nothing is served, and otherwise
// a set share of the time, in slices after which it lets go.
class Cores {
  public:
    static Cores & get();

    void acquire_serving();
    void release_serving();
    // `share`: of the time while serving is busy, 0 … 1.
    void acquire_training(float share);
    void release_training();

  private:
    using Clock = std::chrono::steady_clock;
    bool serving_recently(Clock::time_point now) const;

    std::mutex              guard_;
    std::condition_variable changed_;
    bool                    held_             = false;
    int                     serving_waiting_  = 0;
    int                     training_waiting_ = 0;
    float                   share_            = 0;
    double                  credit_ms_        = 0;  // computing time that serving owes to training
    Clock::time_point       taken_at_;
    Clock::time_point       served_at_;  // end of the last step
};

class ServingLease {
  public:
    ServingLease() { Cores::get().acquire_serving(); }
    ~ServingLease() { Cores::get().release_serving(); }
    ServingLease(const ServingLease &)             = delete;
    ServingLease & operator=(const ServingLease &) = delete;
};

// Held while training computes; `breathe`, called between operations, hands over after each slice.
class TrainingLease {
  public:
    explicit TrainingLease(float share) : share_(share) { take(); }
    ~TrainingLease() { Cores::get().release_training(); }
    TrainingLease(const TrainingLease &)             = delete;
    TrainingLease & operator=(const TrainingLease &) = delete;

    void breathe();

  private:
    void                                  take();
    float                                 share_;
    std::chrono::steady_clock::time_point since_;
};

}  // namespace mf
