// Runs the operations of training, one after another, each on all threads, under the owner of the cores.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../cores.hpp"

namespace mf {

// Threads that wait without spinning for long: between operations the cores belong to somebody else.
class Team {
  public:
    explicit Team(int threads);
    ~Team();
    Team(const Team &)             = delete;
    Team & operator=(const Team &) = delete;

    int  threads() const { return static_cast<int>(workers_.size()) + 1; }
    // f(thread) on every thread; returns when all are done. An exception in any of them is thrown here.
    void run(const std::function<void(int)> & f);

  private:
    void work(int thread);

    std::vector<std::thread>         workers_;
    const std::function<void(int)> * job_ = nullptr;
    std::atomic<uint64_t>            round_{ 0 };
    std::atomic<int>                 busy_{ 0 };
    std::atomic<bool>                stop_{ false };
    std::mutex                       guard_;
    std::condition_variable          wake_;
    std::exception_ptr               failure_;
};

class Session {
  public:
    Session(Team & team, float share) : team_(team), lease_(share) {}

    int  threads() const { return team_.threads(); }
    void run(const std::function<void(int)> & f) {
        lease_.breathe();
        team_.run(f);
    }
    // f(first, last) over shares of [0, count), whose bounds are multiples of `unit`.
    void rows(int count, int unit, const std::function<void(int, int)> & f);
    // f(item, thread) for items [0, count), taken one by one by whoever is free.
    void items(int count, const std::function<void(int, int)> & f);
    void breathe() { lease_.breathe(); }

  private:
    Team &        team_;
    TrainingLease lease_;
};

// Aligned floats that are not cleared.
class Floats {
  public:
    Floats() = default;
    explicit Floats(std::size_t size) { resize(size); }
    // The contents are lost.
    void resize(std::size_t size) {
        if (size > size_) {
            data_.reset(static_cast<float *>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64)));
            if (data_ == nullptr) {
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
