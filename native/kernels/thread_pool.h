// A persistent pool of threads for data-parallel loops.
//
// parallel_for(n, grain, body) calls body(begin, end) over disjoint ranges that
// cover [0, n); ranges are handed out dynamically, `grain` items at a time, so a
// core that the operating system takes away does not hold up the others. The
// caller works too; the call returns when every range is done. A loop without
// workers, or of no more than `grain` items, is one range in the caller's thread.
//
// Thread-safety: loops over several threads run one at a time; concurrent callers
// take turns. What a body wrote is visible after the call. Bodies must
// not throw and must not start another loop on the same pool.
// Workers spin for a short while after a loop, because the next one usually
// follows within microseconds, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace headgate::kernels {

class ThreadPool {
 public:
  // `threads` counts the caller; values outside [1, 1024] are brought inside. Throws
  // std::system_error if the system has no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  template <class Body>
  void parallel_for(int64_t n, int64_t grain, Body&& body) {
    using B = std::remove_reference_t<Body>;
    run(
        n, grain, [](void* b, int64_t begin, int64_t end) { (*static_cast<B*>(b))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void*, int64_t, int64_t);
  struct Loop {
    Call call = nullptr;
    void* body = nullptr;
    int64_t n = 0, grain = 1;
  };

  void run(int64_t n, int64_t grain, Call call, void* body);
  void work();
  void worker();
  void stop();

  std::vector<std::thread> workers_;
  std::mutex callers_;  // one loop at a time

  // Published by `epoch_`: written by the caller before it is raised, read by
  // workers after they see it raised.
  Loop loop_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stopping_{false};

  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
};

}  // namespace headgate::kernels
