#include "team.hpp"

#include <cstdio>
#include <map>
#include <system_error>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace mf {

// Some tens of microseconds: the next operation mostly follows sooner than that.
static constexpr int SPINS = 4000;

static void pause_core() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

Team & Team::of(int threads) {
    static std::mutex                 guard;
    static auto &                     teams = *new std::map<int, Team *>;
    const std::lock_guard<std::mutex> lock(guard);
    Team *&                           team = teams[threads];
    if (team == nullptr) {
        team = new Team(threads);
    }
    return *team;
}

Team::Team(int threads) {
    workers_.reserve(threads);
    try {
        for (int i = 1; i < threads; ++i) {
            workers_.emplace_back([this, i] { work(i); });
        }
    } catch (const std::system_error &) {
        std::fprintf(stderr, "modelfactory: the system gave only %d of %d threads\n", this->threads(), threads);
    }
}

Team::~Team() {
    {
        const std::lock_guard<std::mutex> lock(guard_);
        stop_ = true;
        state_.fetch_add(ROUND);
    }
    wake_.notify_all();
    for (auto & worker : workers_) {
        worker.join();
    }
}

void Team::work(int thread) {
    uint64_t seen = 0;  // the round of the last look
    // Sequentially consistent, as is `sleeping_`: either this thread sees the new round or the caller sees it asleep.
    // The end counts at any time: its round may be the one that was seen when another was looked for.
    const auto fresh = [&] {
        return state_.load() / ROUND != seen || stop_;
    };
    for (;;) {
        for (int i = 0; i < SPINS && !fresh(); ++i) {
            pause_core();
        }
        if (!fresh()) {
            std::unique_lock<std::mutex> lock(guard_);
            sleeping_.fetch_add(1);
            wake_.wait(lock, fresh);
            sleeping_.fetch_sub(1);
        }
        if (stop_) {
            return;
        }
        uint64_t state = state_.load(std::memory_order_acquire);
        seen           = state / ROUND;
        bool joined    = false;
        while ((state & OPEN) != 0 && state / ROUND == seen && !joined) {
            joined = state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire);
        }
        if (!joined) {
            continue;
        }
        try {
            job_.call(job_.context, thread);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard_);
            failure_ = std::current_exception();
        }
        state_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void Team::run_job(const Job & job) {
    if (workers_.empty()) {
        job.call(job.context, 0);
        return;
    }
    uint64_t idle = state_.load(std::memory_order_relaxed) / ROUND * ROUND;
    job_          = job;
    if (!state_.compare_exchange_strong(idle, idle + ROUND + OPEN)) {
        std::fputs("modelfactory: two operations at once on one team; whoever computes must hold the cores\n", stderr);
        std::abort();
    }
    if (sleeping_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(guard_); }
        wake_.notify_all();
    }
    std::exception_ptr mine;
    try {
        job.call(job.context, 0);
    } catch (...) {
        mine = std::current_exception();
    }
    state_.fetch_and(~OPEN, std::memory_order_acq_rel);
    for (int i = 0; (state_.load(std::memory_order_acquire) & (OPEN - 1)) != 0; ++i) {
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

}  // namespace mf
