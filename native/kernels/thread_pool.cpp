#include "kernels/thread_pool.h"

#include <algorithm>
#include <chrono>

namespace headgate::kernels {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the Python between two native calls, far shorter than a read.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the time is up; says which. Yields now and then, so
// that more threads than cores make progress.
template <class Done>
bool spin_until(Done done) {
  const auto limit = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
    std::this_thread::yield();
  } while (Clock::now() < limit);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const int extra = std::clamp(threads, 1, 1024) - 1;
  workers_.reserve(static_cast<size_t>(extra));
  try {
    for (int i = 0; i < extra; ++i) workers_.emplace_back([this] { worker(); });
  } catch (...) {  // out of threads: the destructor will not run
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(sleep_mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (auto& thread : workers_) thread.join();
}

void ThreadPool::run(int64_t n, int64_t grain, Call call, void* body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || n <= grain) {
    call(body, 0, n);
    return;
  }
  std::lock_guard turn(callers_);
  loop_ = {call, body, n, grain};
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) {
    // The empty critical section orders this wake-up after a worker that has
    // tested the epoch but has not yet gone to sleep.
    {
      std::lock_guard lock(sleep_mutex_);
    }
    wake_.notify_all();
  }
  work();
  // Every worker must have left the loop before its body goes out of scope.
  while (busy_.load(std::memory_order_acquire) > 0) {
    if (!spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; })) {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::work() {
  const Loop loop = loop_;
  for (;;) {
    const int64_t begin = next_.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.n) return;
    loop.call(loop.body, begin, std::min(begin + loop.grain, loop.n));
  }
}

void ThreadPool::worker() {
  uint32_t seen = 0;
  for (;;) {
    auto ready = [&] { return epoch_.load(std::memory_order_acquire) != seen || stopping_.load(); };
    if (!spin_until(ready)) {
      std::unique_lock lock(sleep_mutex_);
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != seen || stopping_; });
      sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (stopping_.load()) return;
    seen = epoch_.load(std::memory_order_acquire);
    work();
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace headgate::kernels
