// Who computes. Two operations side by side would only take each other's threads, so serving and training take turns by policy.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace mf {

// The process-wide owner of the cores. Serving goes first; training gets everything while nothing is served, and otherwise
// a set share of the time: each step of serving gives it credit, which it computes away in one go, at most CREDIT_MS_MAX.
class Cores {
  public:
    using Clock = std::chrono::steady_clock;
    // Never freed: threads may wait for it until the process ends.
    static Cores & get();

    void acquire_serving();
    void release_serving();
    // `share`: of the time while serving is busy, above 0 and below 1. Returns how long to go on although serving waits: nothing
    // if the cores were idle.
    Clock::duration acquire_training(float share);
    void            release_training();
    // Of training, since it was last asked: the longest time in which serving could not have had the cores.
    Clock::duration take_longest_hold() { return Clock::duration(longest_hold_.exchange(0, std::memory_order_relaxed)); }
    void            note_hold(Clock::duration hold);
    bool            serving_waits() const { return serving_waiting_.load(std::memory_order_relaxed) > 0; }

  private:
    bool serving_recently(Clock::time_point now) const;
    bool credit_is_due() const;

    std::mutex              guard_;
    std::condition_variable changed_;
    bool                    held_      = false;
    bool                    on_credit_ = false;     // training holds the cores although serving is busy
    std::atomic<int>        serving_waiting_{ 0 };  // written under the guard
    int                     training_waiting_ = 0;
    float                   share_            = 0;
    double                  credit_ms_        = 0;  // computing time that serving owes to training; below 0 if it took too much
    Clock::time_point       taken_at_;
    Clock::time_point       served_at_;  // end of the last step
    std::atomic<Clock::rep> longest_hold_{ 0 };
};

class ServingLease {
  public:
    ServingLease() { Cores::get().acquire_serving(); }
    ~ServingLease() { Cores::get().release_serving(); }
    ServingLease(const ServingLease &)             = delete;
    ServingLease & operator=(const ServingLease &) = delete;
};

// Held while training computes; `breathe`, called between operations, hands over to serving that waits once the credit is used,
// and to other training after each slice.
class TrainingLease {
  public:
    explicit TrainingLease(float share) : share_(share) { take(); }
    ~TrainingLease() {
        note();
        Cores::get().release_training();
    }
    TrainingLease(const TrainingLease &)             = delete;
    TrainingLease & operator=(const TrainingLease &) = delete;

    void breathe();

  private:
    void                     take();
    void                     note();
    float                    share_;
    Cores::Clock::duration   granted_;
    Cores::Clock::time_point since_;
    Cores::Clock::time_point breath_;
};

}  // namespace mf
