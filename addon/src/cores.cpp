#include "cores.hpp"

#include <algorithm>

namespace mf {

// Between two steps of a busy engine lies some JavaScript; only after this long has serving nothing to do.
static constexpr std::chrono::milliseconds SERVING_PAUSE(4);
// What training may save up while serving holds on, so that it does not stall decoding for long afterwards.
static constexpr double                    CREDIT_MS_MAX = 10;
static constexpr std::chrono::milliseconds SLICE(8);

Cores & Cores::get() {
    static Cores cores;
    return cores;
}

static double milliseconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

bool Cores::serving_recently(Clock::time_point now) const { return serving_waiting_ > 0 || now - served_at_ < SERVING_PAUSE; }

void Cores::acquire_serving() {
    std::unique_lock<std::mutex> lock(guard_);
    ++serving_waiting_;
    changed_.wait(lock, [&] { return !held_ && (training_waiting_ == 0 || credit_ms_ <= 0); });
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

void Cores::acquire_training(float share) {
    std::unique_lock<std::mutex> lock(guard_);
    ++training_waiting_;
    share_ = share;
    for (;;) {
        const auto now = Clock::now();
        if (!held_ && !serving_recently(now)) {
            credit_ms_ = 0;
            break;
        }
        if (!held_ && credit_ms_ > 0) {
            break;
        }
        if (held_ || serving_waiting_ > 0) {
            changed_.wait(lock);
        } else {
            changed_.wait_until(lock, served_at_ + SERVING_PAUSE);
        }
    }
    --training_waiting_;
    held_     = true;
    taken_at_ = Clock::now();
}

void Cores::release_training() {
    const std::lock_guard<std::mutex> lock(guard_);
    const auto                        now = Clock::now();
    if (serving_waiting_ > 0 || now - served_at_ < SERVING_PAUSE + (now - taken_at_)) {
        credit_ms_ -= milliseconds(now - taken_at_);
    }
    held_ = false;
    changed_.notify_all();
}

void TrainingLease::take() {
    Cores::get().acquire_training(share_);
    since_ = std::chrono::steady_clock::now();
}

void TrainingLease::breathe() {
    if (std::chrono::steady_clock::now() - since_ >= SLICE) {
        Cores::get().release_training();
        take();
    }
}

}  // namespace mf
