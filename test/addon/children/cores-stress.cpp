// Engines and trainers on one team, for ThreadSanitizer: each operation computes every item once, operations of different holders
// never overlap, exceptions arrive, nobody starves. Built from addon/src/{team,cores}.cpp alone. Prints one line of JSON.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "team.hpp"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int ITEMS = 37;

[[noreturn]] void fail(const char * what) {
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

struct Turn {
    long long       operations = 0;
    Clock::duration held{};
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

Turn serve(int threads, long who, int weight, Clock::time_point until, bool pauses) {
    Turn turn;
    while (Clock::now() < until) {
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
    return turn;
}

Turn train(int threads, long who, int weight, Clock::time_point until, bool pauses) {
    Turn turn;
    while (Clock::now() < until) {
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
    return turn;
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
        const auto               until = Clock::now() + length;
        Turn                     turns[5];
        std::vector<std::thread> all;
        all.emplace_back([&] { turns[0] = serve(2, 1, 300, until, true); });
        all.emplace_back([&] { turns[1] = serve(3, 2, 20, until, true); });
        all.emplace_back([&] { turns[2] = serve(1, 3, 20, until, false); });
        all.emplace_back([&] { turns[3] = train(2, 4, 300, until, true); });
        all.emplace_back([&] { turns[4] = train(4, 5, 30, until, false); });
        for (auto & thread : all) {
            thread.join();
        }
        for (const auto & turn : turns) {
            least = turn.operations < least ? turn.operations : least;
        }
    }
    // One engine that hardly pauses, beside one trainer.
    double engine_ms = 0;
    {
        const auto  until = Clock::now() + length;
        Turn        serving;
        std::thread engine([&] { serving = serve(2, 1, 2000, until, true); });
        std::thread trainer([&] { train(2, 2, 2000, until, false); });
        engine.join();
        trainer.join();
        engine_ms = std::chrono::duration<double, std::milli>(serving.held).count();
    }
    std::printf("{\"least\": %lld, \"serving\": %.3f}\n", least, engine_ms / static_cast<double>(length.count()));
    return 0;
}
