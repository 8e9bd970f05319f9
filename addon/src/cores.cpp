#include "cores.hpp"

#include <algorithm>

namespace mf {

// Between two steps of a busy engine lies some JavaScript; only after this long has serving nothing to do.
static constexpr std::chrono::milliseconds SERVING_PAUSE(4);
// What training may save up while serving holds on. With the operation under way it bounds what serving waits, to below 20 ms.
static constexpr double CREDIT_MS_MAX = 12;
// Less is not worth what changing hands costs.
static constexpr double                    CREDIT_MS_MIN = 2;
static constexpr std::chrono::milliseconds SLICE(8);

Cores & Cores::get() {
    static Cores & cores = *new Cores;
    return cores;
}

static double milliseconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

bool Cores::serving_recently(Clock::time_point now) const { return serving_waiting_ > 0 || now - served_at_ < SERVING_PAUSE; }

bool Cores::credit_is_due() const { return training_waiting_ > 0 && credit_ms_ >= CREDIT_MS_MIN; }

void Cores::acquire_serving() {
    std::unique_lock<std::mutex> lock(guard_);
    ++serving_waiting_;
    changed_.wait(lock, [&] { return !held_ && !credit_is_due(); });
    --serving_waiting_;
    held_     = true;
    taken_at_ = Clock::now();
}

void Cores::release_serving() {
    const std::lock_guard<std::mutex> lock(guard_);
    served_at_ = Clock::now();
    if (training_waiting_ > 0) {
        credit_ms_ = std::min(credit_ms_ + milliseconds(served_at_ - taken_at_) * share_ / (1 - share_), CREDIT_MS_MAX);
    }
    held_ = false;
    changed_.notify_all();
}

Cores::Clock::duration Cores::acquire_training(float share) {
    std::unique_lock<std::mutex> lock(guard_);
    ++training_waiting_;
    share_ = share;
    while (held_ || (serving_recently(Clock::now()) && !credit_is_due())) {
        if (held_ || serving_waiting_ > 0) {
            changed_.wait(lock);
        } else {
            changed_.wait_until(lock, served_at_ + SERVING_PAUSE);
        }
    }
    --training_waiting_;
    held_      = true;
    taken_at_  = Clock::now();
    on_credit_ = serving_recently(taken_at_);
    credit_ms_ = on_credit_ ? credit_ms_ : 0;
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(credit_ms_));
}

void Cores::release_training() {
    const std::lock_guard<std::mutex> lock(guard_);
    if (on_credit_) {
        credit_ms_ -= milliseconds(Clock::now() - taken_at_);
    }
    held_ = false;
    changed_.notify_all();
}

void Cores::note_hold(Clock::duration hold) {
    Clock::rep longest = longest_hold_.load(std::memory_order_relaxed);
    while (hold.count() > longest && !longest_hold_.compare_exchange_weak(longest, hold.count(), std::memory_order_relaxed)) {
    }
}

void TrainingLease::take() {
    granted_ = Cores::get().acquire_training(share_);
    since_   = Cores::Clock::now();
    breath_  = since_;
}

void TrainingLease::note() {
    const auto now = Cores::Clock::now();
    Cores::get().note_hold(now - breath_);
    breath_ = now;
}

void TrainingLease::breathe() {
    note();
    const auto held = breath_ - since_;
    if (held >= SLICE || (held >= granted_ && Cores::get().serving_waits())) {
        Cores::get().release_training();
        take();
    }
}

}  // namespace mf
