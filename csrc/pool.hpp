// Threads that share the parts of one call.
#pragma once

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace laq {

// Parts are claimed one by one, so a core that is busy elsewhere takes fewer; the caller works too and never waits
// for a thread that has not begun. A call that finds the pool in use (from another Python thread) works alone.
// Threads do not survive a fork: the child starts its own.
class Pool {
  public:
    using Work = void (*)(void *context, int64_t part);
    static constexpr int kSpins = 5000, kFewSpins = 200, kTurns = 2000;

    static Pool &get() {
        static Pool *pool = new Pool;  // never destroyed: threads may outlive main
        return *pool;
    }

    void set_threads(int n) {
        std::lock_guard<std::mutex> one(caller_);
        wanted_ = n;
    }
    int threads() const { return wanted_; }

    // `spins`: how long threads then wait for the next call without sleeping. Waking one that sleeps takes some 50 us;
    // one that spins takes a core from others.
    void run(int64_t n_parts, Work work, void *context, int spins = kSpins) {
        std::unique_lock<std::mutex> one(caller_, std::defer_lock);
        if (n_parts <= 1 || wanted_ <= 1 || !one.try_lock() || !start()) {
            for (int64_t part = 0; part < n_parts; part++) work(context, part);
            return;
        }
        auto &crew = *crew_;
        {
            std::lock_guard<std::mutex> lock(crew.mutex);
            crew.work = work;
            crew.context = context;
            crew.n_parts = n_parts;
            crew.caller_cpu = current_cpu();
            crew.spins = spins;
            crew.done.store(0, std::memory_order_relaxed);
            const uint64_t round = (crew.ticket.load(std::memory_order_relaxed) >> 32) + 1;
            crew.ticket.store(round << 32, std::memory_order_release);
        }
        crew.wake.notify_all();
        crew.claim_all();
        for (int i = 0; crew.done.load(std::memory_order_acquire) < n_parts; i++) wait(i);
        // late threads see a round without parts: closing it lets `work` and `context` be replaced
        uint64_t open = crew.ticket.load(std::memory_order_relaxed);
        while (!crew.ticket.compare_exchange_weak(open, open | 0xffffffffu)) {
        }
        for (int i = 0; crew.inside.load() != 0; i++) wait(i);
    }

  private:
    // What threads share. A new one is made when their number changes; the old one's threads leave.
    struct Crew {
        std::mutex mutex;
        std::condition_variable wake;
        std::atomic<uint64_t> ticket{0xffffffffu};  // round << 32 | next part; all ones: none left
        std::atomic<int64_t> done{0};
        std::atomic<int> inside{0};
        std::atomic<bool> leave{false};
        Work work = nullptr;
        void *context = nullptr;
        int64_t n_parts = 0;
        std::atomic<int> caller_cpu{-1}, spins{0};
        std::vector<std::thread> threads;
#if defined(__linux__)
        cpu_set_t cpus;  // of the thread that made this crew, which its threads inherit
#endif

        void claim_all() {
            inside.fetch_add(1);  // before the ticket is read: a caller that closes the round sees one or the other
            uint64_t at = ticket.load();
            while ((at & 0xffffffffu) != 0xffffffffu && static_cast<int64_t>(at & 0xffffffffu) < n_parts) {
                if (ticket.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel)) {
                    work(context, static_cast<int64_t>(at & 0xffffffffu));
                    done.fetch_add(1, std::memory_order_acq_rel);
                    at = ticket.load(std::memory_order_acquire);
                }
            }
            inside.fetch_sub(1, std::memory_order_acq_rel);
        }

        void serve() {
            uint64_t seen = 0;
            while (!leave.load(std::memory_order_acquire)) {
                const uint64_t round = ticket.load(std::memory_order_acquire) >> 32;
                if (round != seen) {
                    seen = round;
                    leave_cpu(caller_cpu);
                    claim_all();
                    continue;
                }
                if (!spin(seen)) {
                    std::unique_lock<std::mutex> lock(mutex);
                    wake.wait(lock, [&] { return leave || ticket.load() >> 32 != seen; });
                }
            }
        }

        // Linux may wake a thread on the very CPU that calls, where both then share its time until they are balanced, long
        // after the call. A thread that finds itself there moves to the others that the crew was given.
        void leave_cpu(int cpu) const {
#if defined(__linux__)
            if (cpu < 0 || sched_getcpu() != cpu) return;
            cpu_set_t others = cpus;
            CPU_CLR(cpu, &others);
            const auto n_threads = static_cast<int>(threads.size());
            if (CPU_COUNT(&others) >= n_threads) sched_setaffinity(0, sizeof others, &others);
#else
            static_cast<void>(cpu);
#endif
        }

        bool spin(uint64_t seen) const {
            for (int i = 0; i < spins; i++) {
                if (ticket.load(std::memory_order_acquire) >> 32 != seen || leave) return true;
                pause();
            }
            return false;
        }
    };

    Pool() {
        const unsigned cores = std::thread::hardware_concurrency();
        wanted_ = cores == 0 ? 1 : static_cast<int>(cores);
        pthread_atfork([] { get().caller_.lock(); }, [] { get().caller_.unlock(); }, [] { get().after_fork(); });
    }

    void after_fork() {
        crew_ = nullptr;  // left to the parent: its threads do not exist here
        caller_.unlock();
    }

    // False if the system gives no threads.
    bool start() {
        if (crew_ != nullptr && static_cast<int>(crew_->threads.size()) + 1 == wanted_) return true;
        if (crew_ != nullptr) {
            {
                std::lock_guard<std::mutex> lock(crew_->mutex);
                crew_->leave = true;
            }
            crew_->wake.notify_all();
            for (auto &thread : crew_->threads) thread.join();
            delete crew_;
        }
        crew_ = new Crew;
        Crew *crew = crew_;
#if defined(__linux__)
        if (sched_getaffinity(0, sizeof crew->cpus, &crew->cpus) != 0) CPU_ZERO(&crew->cpus);
#endif
        try {
            for (int i = 1; i < wanted_; i++) crew_->threads.emplace_back([crew] { crew->serve(); });
        } catch (const std::system_error &) {
            wanted_ = static_cast<int>(crew_->threads.size()) + 1;
        }
        return wanted_ > 1;
    }

    static int current_cpu() {
#if defined(__linux__)
        return sched_getcpu();
#else
        return -1;
#endif
    }

    // A thread that holds the last part may have been put aside: give it the core after a while.
    static void wait(int turn) {
        if (turn < kTurns) pause();
        else std::this_thread::yield();
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::mutex caller_;
    std::atomic<int> wanted_;
    Crew *crew_ = nullptr;
};

}  // namespace laq
