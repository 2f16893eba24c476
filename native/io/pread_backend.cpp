#include <signal.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
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
    std::unique_ptr<AlignedBuffer> scrap;  // what lies between the parts of a run
    std::vector<iovec> to;
    while (std::optional<Chunk> chunk = scheduler_.take_blocking()) {
      if (chunk->of_run() && !scrap) scrap = std::make_unique<AlignedBuffer>(kLargestGap);
      read_fully(*chunk, scrap ? scrap->data() : nullptr, to);
      scheduler_.finish({&*chunk, 1});
    }
  }

  static void read_fully(Chunk& chunk, std::byte* scrap, std::vector<iovec>& to) {
    ssize_t result;
    do {
      chunk.scatter(scrap, to);
      const int fd = chunk.request->fd;
      const auto offset = static_cast<off_t>(chunk.offset + chunk.position);
      result = to.size() == 1 ? pread(fd, to[0].iov_base, to[0].iov_len, offset)
                              : preadv(fd, to.data(), static_cast<int>(to.size()), offset);
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
