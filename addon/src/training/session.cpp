#include "session.hpp"

#include <algorithm>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace mf {

// About 30 µs: most operations follow one another sooner than that.
static constexpr int SPINS = 4000;

static void pause_core() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

Team::Team(int threads) {
    for (int i = 1; i < threads; ++i) {
        workers_.emplace_back([this, i] { work(i); });
    }
}

Team::~Team() {
    {
        const std::lock_guard<std::mutex> lock(guard_);
        stop_ = true;
        round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto & worker : workers_) {
        worker.join();
    }
}

void Team::work(int thread) {
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && round_.load(std::memory_order_acquire) == seen; ++i) {
            pause_core();
        }
        if (round_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(guard_);
            wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
        }
        seen = round_.load(std::memory_order_acquire);
        if (stop_) {
            return;
        }
        try {
            (*job_)(thread);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard_);
            failure_ = std::current_exception();
        }
        busy_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void Team::run(const std::function<void(int)> & f) {
    if (workers_.empty()) {
        f(0);
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(guard_);
        job_ = &f;
        busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    std::exception_ptr mine;
    try {
        f(0);
    } catch (...) {
        mine = std::current_exception();
    }
    for (int i = 0; busy_.load(std::memory_order_acquire) > 0; ++i) {
        if (i < SPINS) {
            pause_core();
        } else {
            std::this_thread::yield();
        }
    }
    std::exception_ptr theirs;
    std::swap(theirs, failure_);
    if (mine || theirs) {
        std::rethrow_exception(mine ? mine : theirs);
    }
}

void Session::rows(int count, int unit, const std::function<void(int, int)> & f) {
    const int units = (count + unit - 1) / unit;
    run([&](int thread) {
        const int first = units * thread / threads() * unit;
        const int last  = std::min(units * (thread + 1) / threads() * unit, count);
        if (first < last) {
            f(first, last);
        }
    });
}

void Session::items(int count, const std::function<void(int, int)> & f) {
    std::atomic<int> next{ 0 };
    run([&](int thread) {
        for (int item = next.fetch_add(1); item < count; item = next.fetch_add(1)) {
            f(item, thread);
        }
    });
}

}  // namespace mf
