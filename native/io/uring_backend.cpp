#include <cerrno>

#include "io/read_backend.h"
#include "io/uring.h"

#ifdef HEADGATE_HAVE_URING

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <map>
#include <memory>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace headgate {
namespace {

constexpr std::uint64_t kWakeTag = ~std::uint64_t{0};
// Table sizes; what exceeds them is read without registration. Files stay below the usual limit
// of 1024 descriptors, which also bounds the table.
constexpr unsigned kFileSlots = 512;
constexpr unsigned kBufferSlots = 1024;
constexpr std::size_t kSlotBytes = std::size_t{1} << 30;  // the kernel's limit for one buffer

// A part of a buffer that the kernel has pinned, and its place in the kernel's table.
struct PinnedSpan {
  std::span<std::byte> memory;
  unsigned slot;
};

// What the kernel knows beforehand, so that a read does not look up its file and pin its pages.
// Used by the ring's thread alone. A refusal (locked-memory limit, old kernel) is not an error.
class Registrations {
 public:
  Registrations(Uring& ring, bool buffers) : ring_(ring) {
    have_files_ = ring_.create_file_table(kFileSlots);
    have_buffers_ = buffers && ring_.create_buffer_table(kBufferSlots);
  }

  void follow(const ReadScheduler& scheduler) {
    for (int fd : scheduler.files_from(files_seen_)) {
      const auto slot = static_cast<unsigned>(files_seen_++);
      if (have_files_ && slot < kFileSlots && ring_.set_file(slot, fd)) file_slots_[fd] = slot;
    }
    for (std::span<std::byte> buffer : scheduler.buffers_from(buffers_seen_)) {
      ++buffers_seen_;
      if (have_buffers_) pin(buffer);
    }
  }

  // The table's index of `fd`, or -1.
  int file_slot(int fd) const {
    const auto found = file_slots_.find(fd);
    return found == file_slots_.end() ? -1 : static_cast<int>(found->second);
  }

  // The table's index of the pinned part that holds all of [at, at + size), or -1.
  int buffer_slot(const std::byte* at, std::size_t size) const {
    const auto above = pinned_.upper_bound(at);
    if (above == pinned_.begin()) return -1;
    const PinnedSpan& span = std::prev(above)->second;
    const bool inside = at + size <= span.memory.data() + span.memory.size();
    return inside ? static_cast<int>(span.slot) : -1;
  }

 private:
  void pin(std::span<std::byte> buffer) {
    while (!buffer.empty() && slots_used_ < kBufferSlots) {
      const auto part = buffer.first(std::min(buffer.size(), kSlotBytes));
      if (!ring_.set_buffer(slots_used_, part)) return;
      pinned_[part.data()] = {part, slots_used_++};
      buffer = buffer.subspan(part.size());
    }
  }

  Uring& ring_;
  bool have_files_ = false;
  bool have_buffers_ = false;
  std::size_t files_seen_ = 0;
  std::size_t buffers_seen_ = 0;
  unsigned slots_used_ = 0;
  std::unordered_map<int, unsigned> file_slots_;
  std::map<const std::byte*, PinnedSpan> pinned_;
};

// What the ring's thread does and owns, from the first read to the last.
class RingLoop {
 public:
  RingLoop(Uring& ring, ReadScheduler& scheduler, int wake_fd, unsigned depth, bool pin_buffers)
      : ring_(ring), scheduler_(scheduler), wake_fd_(wake_fd), known_(ring, pin_buffers) {
    slots_.resize(depth);
    vectors_.resize(depth);
    for (unsigned slot = depth; slot-- > 0;) free_.push_back(slot);
    fresh_.reserve(depth);
    finished_.reserve(depth);
  }

  void run() {
    arm_wake();
    while (true) {
      known_.follow(scheduler_);
      std::optional<Clock::time_point> retry_at;
      scheduler_.take(free_.size(), fresh_, &retry_at);
      for (Chunk& chunk : fresh_) start(std::move(chunk));
      fresh_.clear();
      if (free_.size() == slots_.size() && scheduler_.stopping()) return;

      std::optional<std::chrono::nanoseconds> timeout;
      if (retry_at) timeout = *retry_at - Clock::now();
      const int error = ring_.submit_and_wait(timeout);
      ring_.reap([&](std::uint64_t tag, int result) { handle(tag, result); });
      if (error != 0) abandon_unsubmitted(error);
      scheduler_.finish(finished_);
      finished_.clear();
    }
  }

 private:
  void start(Chunk chunk) {
    const unsigned slot = free_.back();
    free_.pop_back();
    slots_[slot] = std::move(chunk);
    push_read(slot);
  }

  void push_read(unsigned slot) {
    const Chunk& chunk = slots_[slot];
    std::vector<iovec>& to = vectors_[slot];
    if (chunk.of_run() && !scrap_) scrap_ = std::make_unique<AlignedBuffer>(kLargestGap);
    chunk.scatter(scrap_ ? scrap_->data() : nullptr, to);
    const int file_slot = known_.file_slot(chunk.request->fd);

    io_uring_sqe& entry = ring_.push();
    if (to.size() == 1) {
      const auto* at = static_cast<const std::byte*>(to[0].iov_base);
      const int buffer_slot = known_.buffer_slot(at, to[0].iov_len);
      entry.opcode = buffer_slot < 0 ? IORING_OP_READ : IORING_OP_READ_FIXED;
      if (buffer_slot >= 0) entry.buf_index = static_cast<std::uint16_t>(buffer_slot);
      entry.addr = reinterpret_cast<std::uint64_t>(at);
      entry.len = static_cast<std::uint32_t>(to[0].iov_len);
    } else {
      entry.opcode = IORING_OP_READV;
      entry.addr = reinterpret_cast<std::uint64_t>(to.data());
      entry.len = static_cast<std::uint32_t>(to.size());
    }
    entry.fd = file_slot < 0 ? chunk.request->fd : file_slot;
    if (file_slot >= 0) entry.flags = IOSQE_FIXED_FILE;
    entry.off = chunk.offset + chunk.position;
    entry.user_data = slot;
  }

  void arm_wake() {
    io_uring_sqe& entry = ring_.push();
    entry.opcode = IORING_OP_POLL_ADD;
    entry.fd = wake_fd_;
    entry.poll_events = POLLIN;
    entry.user_data = kWakeTag;
  }

  void handle(std::uint64_t tag, int result) {
    if (tag == kWakeTag) {
      std::uint64_t count;  // emptied first, so that a wake from now on is seen by the new poll
      while (read(wake_fd_, &count, sizeof(count)) < 0 && errno == EINTR) {
      }
      arm_wake();
    } else if (slots_[tag].advance(result)) {
      release(static_cast<unsigned>(tag));
    } else {
      push_read(static_cast<unsigned>(tag));
    }
  }

  void release(unsigned slot) {
    finished_.push_back(std::move(slots_[slot]));
    free_.push_back(slot);
  }

  // The kernel refuses the call itself. We know of no cause; should there be one, the requests
  // must fail rather than hang.
  void abandon_unsubmitted(int error) {
    bool poll_lost = false;
    ring_.drop_unsubmitted([&](std::uint64_t tag) {
      if (tag == kWakeTag) {
        poll_lost = true;
      } else {
        slots_[tag].advance(-static_cast<std::int64_t>(error));
        release(static_cast<unsigned>(tag));
      }
    });
    if (poll_lost) arm_wake();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  Uring& ring_;
  ReadScheduler& scheduler_;
  const int wake_fd_;
  Registrations known_;
  std::vector<Chunk> slots_;                 // in flight, by user_data
  std::vector<std::vector<iovec>> vectors_;  // where the bytes of each go
  std::unique_ptr<AlignedBuffer> scrap_;     // what lies between the parts of runs; never looked at
  std::vector<unsigned> free_;               // indices of slots_
  std::vector<Chunk> fresh_;
  std::vector<Chunk> finished_;
};

// One thread that owns the ring; other threads reach it through an eventfd that the ring polls.
class UringBackend final : public ReadBackend {
 public:
  UringBackend(ReadScheduler& scheduler, unsigned depth, bool pin_buffers, int* error)
      : wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (wake_fd_ < 0) {
      *error = errno;
      return;
    }
    std::promise<int> opened;
    std::future<int> outcome = opened.get_future();
    thread_ =
        std::thread([this, &scheduler, depth, pin_buffers, opened = std::move(opened)]() mutable {
          sigset_t all;  // signals belong to the host program's threads
          sigfillset(&all);
          pthread_sigmask(SIG_BLOCK, &all, nullptr);
          Uring ring;
          const int refused = ring.open(depth + 1);  // one more for the poll
          opened.set_value(refused);
          if (refused == 0) RingLoop(ring, scheduler, wake_fd_, depth, pin_buffers).run();
        });
    *error = outcome.get();
  }

  ~UringBackend() override {
    if (thread_.joinable()) {
      wake();
      thread_.join();
    }
    if (wake_fd_ >= 0) close(wake_fd_);
  }

  const char* name() const override { return "io_uring"; }

  void wake() override {
    const std::uint64_t one = 1;  // fails only when a wake is pending already
    while (write(wake_fd_, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
  }

 private:
  const int wake_fd_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ReadBackend> make_uring_backend(ReadScheduler& scheduler, unsigned depth,
                                                bool register_buffers, int* error) {
  *error = 0;
  auto backend = std::make_unique<UringBackend>(scheduler, depth, register_buffers, error);
  if (*error != 0) return nullptr;
  return backend;
}

}  // namespace headgate

#else

namespace headgate {

std::unique_ptr<ReadBackend> make_uring_backend(ReadScheduler&, unsigned, bool, int* error) {
  *error = ENOSYS;
  return nullptr;
}

}  // namespace headgate

#endif
