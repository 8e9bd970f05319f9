// Engines and trainers on one team, for ThreadSanitizer: each operation computes every item once, operations of different holders
// never overlap, exceptions arrive, nobody starves: all go on until each has had its share. Built from addon/src/{team,cores}.cpp
// alone. Prints one line of JSON.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "team.hpp"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int ITEMS = 37;

[[noreturn]] void fail(const char * what) {
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

// What one holder does: until the time is over, and until each of those beside it has had its share.
struct Turn {
    std::atomic<long long> operations{ 0 };
    Clock::duration        held{};
};

constexpr long long SHARE = 100;

struct Length {
    Clock::time_point         until;
    const std::vector<Turn> & turns;

    bool over() const {
        return Clock::now() >= until && std::all_of(turns.begin(), turns.end(), [](const Turn & turn) {
                   return turn.operations.load(std::memory_order_relaxed) >= SHARE;
               });
    }
};

// Not atomic on purpose: only the order that the cores give keeps these from being a race.
struct Result {
    long holder    = 0;
    long operation = 0;
    int  times     = 0;
};
Result results[ITEMS];
long   operations = 0;

// `who` holds the cores. Another holder may compute before the first item, never between it and the checks.
void operation(mf::Session & session, long who, int weight, bool broken) {
    const auto mine   = std::this_thread::get_id();
    bool       caught = false;
    session.breathe();
    try {
        session.items(ITEMS, 0, [&](int item, int thread) {
            if (thread < 0 || thread >= session.threads() || (thread == 0) != (std::this_thread::get_id() == mine)) {
                fail("a wrong thread number");
            }
            volatile double x = item;
            for (int i = 0; i < weight; ++i) {
                x = x * 1.0000001;
            }
            Result & result  = results[item];
            result.times     = result.holder == who && result.operation == operations ? result.times + 1 : 1;
            result.holder    = who;
            result.operation = operations;
            if (broken && item == ITEMS / 2) {
                throw std::runtime_error("on purpose");
            }
        });
    } catch (const std::runtime_error &) {
        caught = true;
    }
    for (const Result & result : results) {
        if (!broken && (result.holder != who || result.operation != operations || result.times != 1)) {
            fail("an item was left out, done twice, or done by somebody else");
        }
    }
    ++operations;
    if (caught != broken) {
        fail("an exception was lost or made up");
    }
}

void serve(Turn & turn, int threads, long who, int weight, const Length & length, bool pauses) {
    while (!length.over()) {
        {
            const mf::ServingLease lease;
            const auto             from = Clock::now();
            mf::Session            session(mf::Team::of(threads));
            for (int i = 0; i < 20; ++i) {
                operation(session, who, weight, turn.operations % 97 == 13);
                ++turn.operations;
            }
            turn.held += Clock::now() - from;
        }
        if (pauses) {
            std::this_thread::sleep_for(std::chrono::microseconds(turn.operations % 800 == 0 ? 9000 : 300));
        }
    }
}

void train(Turn & turn, int threads, long who, int weight, const Length & length, bool pauses) {
    while (!length.over()) {
        mf::TrainingLease lease(0.3F);
        mf::Session       session(mf::Team::of(threads), &lease);
        for (int i = 0; i < 60; ++i) {
            operation(session, who, weight, turn.operations % 89 == 7);
            ++turn.operations;
        }
        if (pauses && turn.operations % 3 == 0) {
            std::this_thread::yield();
        }
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const auto length = std::chrono::milliseconds(argc > 1 ? std::atoi(argv[1]) : 1000);
    long long  least  = 1LL << 62;
    // Many short lives of a team: threads that come late find it over.
    for (int i = 0; i < 200; ++i) {
        mf::Team    team(1 + i % 4);
        mf::Session session(team);
        for (int n = 0; n < i % 5; ++n) {
            operation(session, 1, 10, n == 3);
        }
    }
    // Everybody at once, with teams of different sizes.
    {
        std::vector<Turn>        turns(5);
        const Length             until{ Clock::now() + length, turns };
        std::vector<std::thread> all;
        all.emplace_back([&] { serve(turns[0], 2, 1, 300, until, true); });
        all.emplace_back([&] { serve(turns[1], 3, 2, 20, until, true); });
        all.emplace_back([&] { serve(turns[2], 1, 3, 20, until, false); });
        all.emplace_back([&] { train(turns[3], 2, 4, 300, until, true); });
        all.emplace_back([&] { train(turns[4], 4, 5, 30, until, false); });
        for (auto & thread : all) {
            thread.join();
        }
        for (const auto & turn : turns) {
            least = std::min(least, turn.operations.load());
        }
    }
    // One engine that hardly pauses, beside one trainer.
    double serving = 0;
    {
        const auto        from = Clock::now();
        std::vector<Turn> turns(2);
        const Length      until{ from + length, turns };
        std::thread       engine([&] { serve(turns[0], 2, 1, 2000, until, true); });
        std::thread       trainer([&] { train(turns[1], 2, 2, 2000, until, false); });
        engine.join();
        trainer.join();
        serving = std::chrono::duration<double>(turns[0].held) / (Clock::now() - from);
    }
    std::printf("{\"least\": %lld, \"serving\": %.3f}\n", least, serving);
    return 0;
}
