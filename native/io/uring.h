#pragma once

// The kernel's io_uring interface by raw system calls, as far as a queue of reads needs it.
#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

// Headers older than Linux 5.11 lack the timed wait; the code is then left out.
#if defined(IORING_ENTER_EXT_ARG)
#define HEADGATE_HAVE_URING 1

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace headgate {

// One submission and completion ring. To be created, used and destroyed by one thread.
class Uring {
 public:
  Uring() = default;
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  int open(unsigned entries);  // 0, or an errno when the system has no ring to give

  // The next submission entry, zeroed. The caller never has more than `entries` unfinished.
  io_uring_sqe& push();

  // Submits what was pushed and waits for a completion, a signal or the timeout. Returns 0 or an
  // errno that retrying does not cure; then pushed entries may remain unsubmitted.
  int submit_and_wait(std::optional<std::chrono::nanoseconds> timeout);

  // Calls take(user_data, result) for each completion there is.
  template <typename Take>
  void reap(Take take) {
    unsigned head = *cq_head_;
    const unsigned tail = __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE);
    for (; head != tail; ++head) {
      const io_uring_cqe& entry = cqes_[head & cq_mask_];
      take(entry.user_data, entry.res);
    }
    __atomic_store_n(cq_head_, head, __ATOMIC_RELEASE);
  }

  // Calls drop(user_data) for each entry pushed that the kernel has not taken, and forgets them.
  template <typename Drop>
  void drop_unsubmitted(Drop drop) {
    for (unsigned i = __atomic_load_n(sq_head_, __ATOMIC_ACQUIRE); i != tail_; ++i) {
      drop(sqes_[i & sq_mask_].user_data);
    }
    tail_ = *sq_head_;
    __atomic_store_n(sq_tail_, tail_, __ATOMIC_RELEASE);
  }

  // Tables of registered files and buffers, empty at first. False when the system refuses.
  bool create_file_table(unsigned slots);
  bool create_buffer_table(unsigned slots);
  bool set_file(unsigned slot, int fd);
  bool set_buffer(unsigned slot, std::span<std::byte> memory);

 private:
  bool map();

  int fd_ = -1;
  io_uring_params params_{};
  void* rings_ = nullptr;
  std::size_t rings_bytes_ = 0;
  io_uring_sqe* sqes_ = nullptr;
  io_uring_cqe* cqes_ = nullptr;
  unsigned* sq_head_ = nullptr;
  unsigned* sq_tail_ = nullptr;
  unsigned* cq_head_ = nullptr;
  unsigned* cq_tail_ = nullptr;
  unsigned sq_mask_ = 0;
  unsigned cq_mask_ = 0;
  unsigned tail_ = 0;  // of the submission ring, ahead of *sq_tail_ until submitted
};

}  // namespace headgate

#endif
