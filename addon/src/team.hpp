// Threads that compute operations together, one operation after another.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "cores.hpp"

namespace mf {

// The caller works as thread 0, and whoever of the others comes in time joins in. Nobody waits for a thread that the system
// holds up before it has begun: with other programs busy on the same processors an operation takes as long as the caller alone
// needs, where a barrier of all threads would take a time slice each.
//
// Whoever calls `run` holds the cores (cores.hpp), so one team serves a whole process: operations are neither nested nor side by
// side, and one that is stops the process.
class Team {
  public:
    // The process's team of that many threads; never freed, since its threads outlive whoever asked.
    static Team & of(int threads);

    // Of fewer threads if the system gives no more.
    explicit Team(int threads);
    ~Team();
    Team(const Team &)             = delete;
    Team & operator=(const Team &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // f(thread) on thread 0 and on those of the others that join before thread 0 is done: f must take its work from a common
    // counter until nothing is left. An exception in any of them is thrown here.
    template <typename F> void run(F && f) {
        const Job job = { &f, [](void * context, int thread) {
                             (*static_cast<std::remove_reference_t<F> *>(context))(thread);
                         } };
        run_job(job);
    }

  private:
    struct Job {
        void * context;
        void (*call)(void *, int);
    };
    void run_job(const Job & job);
    void work(int thread);

    // Round in the high bits, then whether it can be joined, then how many of the workers are in it. 48 bits of rounds do not
    // wrap.
    static constexpr uint64_t OPEN  = 1U << 15U;
    static constexpr uint64_t ROUND = 1U << 16U;

    std::vector<std::thread> workers_;
    Job                      job_ = {};
    std::atomic<uint64_t>    state_{ 0 };
    std::atomic<int>         sleeping_{ 0 };
    std::atomic<bool>        stop_{ false };
    std::mutex               guard_;
    std::condition_variable  wake_;
    std::exception_ptr       failure_;
};

// Most work of one operation of training, in multiply-adds of 8 bits: some milliseconds on two cores. Between operations training
// can hand the cores over.
inline constexpr double OPERATION_MACS = 4e8;
// What takes about as long: a multiply-add in float32, and an element of a norm, a rotation or an exponential.
inline constexpr double FLOAT_MACS   = 4;
inline constexpr double ELEMENT_MACS = 64;

// Operations of somebody who holds the cores. With a training lease, hands them over between operations, and takes no more than
// OPERATION_MACS for one unless a single item needs them. What an item computes must not depend on which others it shares an
// operation with.
class Session {
  public:
    explicit Session(Team & team, TrainingLease * lease = nullptr) : team_(team), lease_(lease) {}

    int  threads() const { return team_.threads(); }
    void breathe() {
        if (lease_ != nullptr) {
            lease_->breathe();
        }
    }
    // f(item, thread) for items [0, count), taken one by one by whoever is free. `work`: of one item.
    template <typename F> void items(int count, double work, F && f) {
        const int limit = at_once(count, work);
        for (int first = 0; first < count; first += limit) {
            operation(first, first + limit < count ? first + limit : count, f);
        }
    }
    // f(first, last) over pieces of [0, count) whose bounds are multiples of `unit`; a few for each thread. `work`: of one of
    // `count`.
    template <typename F> void rows(int count, int unit, double work, F && f) {
        const int units = (count + unit - 1) / unit;
        const int limit = at_once(units, work * unit);
        for (int begin = 0; begin < units; begin += limit) {
            const int here   = begin + limit < units ? limit : units - begin;
            const int pieces = here < 4 * threads() ? here : 4 * threads();
            operation(0, pieces, [&](int piece, int) {
                const int first = (begin + static_cast<int>(static_cast<int64_t>(here) * piece / pieces)) * unit;
                const int last  = (begin + static_cast<int>(static_cast<int64_t>(here) * (piece + 1) / pieces)) * unit;
                f(first, last < count ? last : count);
            });
        }
    }

  private:
    int at_once(int count, double work) const {
        const double fit = lease_ != nullptr && work > 0 ? OPERATION_MACS / work : count;
        return fit >= count ? (count > 0 ? count : 1) : fit > threads() ? static_cast<int>(fit) : threads();
    }
    template <typename F> void operation(int first, int end, F && f) {
        breathe();
        if (end - first == 1) {
            f(first, 0);
            return;
        }
        std::atomic<int> next{ first };
        team_.run([&](int thread) {
            for (int item = next.fetch_add(1, std::memory_order_relaxed); item < end;
                 item     = next.fetch_add(1, std::memory_order_relaxed)) {
                f(item, thread);
            }
        });
    }

    Team &          team_;
    TrainingLease * lease_;
};

// Aligned floats that are not cleared.
class Floats {
  public:
    // The contents are lost if it has to grow.
    void resize(std::size_t size) {
        if (size > size_) {
            data_.reset(static_cast<float *>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64)));
            if (data_ == nullptr) {
                size_ = 0;
                throw std::bad_alloc();
            }
            size_ = size;
        }
    }
    float *       data() { return data_.get(); }
    const float * data() const { return data_.get(); }
    std::size_t   size() const { return size_; }
    std::size_t   bytes() const { return size_ * sizeof(float); }

  private:
    struct Free {
        void operator()(float * p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    std::size_t                  size_ = 0;
};

}  // namespace mf
