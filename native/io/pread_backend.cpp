#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <vector>

#include "io/read_backend.h"

namespace headgate {
namespace {

// A pool of threads, each with one blocking read at a time.
class PreadBackend final : public ReadBackend {
 public:
  PreadBackend(ReadScheduler& scheduler, unsigned threads) : scheduler_(scheduler) {
    try {
      for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      scheduler_.stop();  // or the threads that did start would never end
      join();
      throw;
    }
  }
  ~PreadBackend() override { join(); }

  const char* name() const override { return "pread"; }
  void wake() override { scheduler_.wake_takers(); }

 private:
  void work() {
    sigset_t all;  // signals belong to the host program's threads
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    while (std::optional<Chunk> chunk = scheduler_.take_blocking()) {
      read_fully(*chunk);
      scheduler_.finish({&*chunk, 1});
    }
  }

  static void read_fully(Chunk& chunk) {
    ssize_t result;
    do {
      result =
          pread(chunk.request->fd, chunk.destination + chunk.position,
                chunk.length - chunk.position, static_cast<off_t>(chunk.offset + chunk.position));
      if (result < 0) result = -errno;
    } while (!chunk.advance(result));
  }

  void join() {
    for (std::thread& thread : threads_) thread.join();
  }

  ReadScheduler& scheduler_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadBackend> make_pread_backend(ReadScheduler& scheduler, unsigned threads) {
  return std::make_unique<PreadBackend>(scheduler, threads);
}

}  // namespace headgate
