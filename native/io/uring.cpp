#include "io/uring.h"

#ifdef HEADGATE_HAVE_URING

#include <linux/time_types.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace headgate {
namespace {

int setup(unsigned entries, io_uring_params* params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

int enroll(int fd, unsigned what, const void* argument, unsigned count) {
  return static_cast<int>(syscall(__NR_io_uring_register, fd, what, argument, count));
}

}  // namespace

int Uring::open(unsigned entries) {
#ifdef IORING_SETUP_DEFER_TASKRUN
  // Completions are then worked off by the ring's own thread when it waits, in place of
  // interrupting whoever runs (Linux 6.1).
  params_.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  fd_ = setup(entries, &params_);
  if (fd_ < 0 && errno == EINVAL)
#endif
  {
    params_ = {};
    fd_ = setup(entries, &params_);
  }
  if (fd_ < 0) return errno;
  constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_EXT_ARG;
  if ((params_.features & kNeeded) != kNeeded) return ENOSYS;
  return map() ? 0 : errno;
}

bool Uring::map() {
  rings_bytes_ = std::max(params_.sq_off.array + params_.sq_entries * sizeof(unsigned),
                          params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe));
  const auto shared = [&](std::size_t bytes, off_t where) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, where);
    return at == MAP_FAILED ? nullptr : at;
  };
  rings_ = shared(rings_bytes_, IORING_OFF_SQ_RING);
  if (rings_ == nullptr) return false;
  sqes_ = static_cast<io_uring_sqe*>(
      shared(params_.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
  if (sqes_ == nullptr) return false;

  auto* base = static_cast<std::byte*>(rings_);
  const auto word = [&](unsigned offset) { return reinterpret_cast<unsigned*>(base + offset); };
  sq_head_ = word(params_.sq_off.head);
  sq_tail_ = word(params_.sq_off.tail);
  cq_head_ = word(params_.cq_off.head);
  cq_tail_ = word(params_.cq_off.tail);
  sq_mask_ = *word(params_.sq_off.ring_mask);
  cq_mask_ = *word(params_.cq_off.ring_mask);
  cqes_ = reinterpret_cast<io_uring_cqe*>(base + params_.cq_off.cqes);
  // The ring holds indices into the entries; ours are always in order.
  unsigned* order = word(params_.sq_off.array);
  for (unsigned i = 0; i < params_.sq_entries; ++i) order[i] = i;
  tail_ = *sq_tail_;
  return true;
}

Uring::~Uring() {
  if (sqes_ != nullptr) munmap(sqes_, params_.sq_entries * sizeof(io_uring_sqe));
  if (rings_ != nullptr) munmap(rings_, rings_bytes_);
  if (fd_ >= 0) close(fd_);
}

io_uring_sqe& Uring::push() {
  io_uring_sqe& entry = sqes_[tail_++ & sq_mask_];
  std::memset(&entry, 0, sizeof(entry));
  return entry;
}

int Uring::submit_and_wait(std::optional<std::chrono::nanoseconds> timeout) {
  __kernel_timespec limit{};
  io_uring_getevents_arg argument{};
  if (timeout) {
    const std::int64_t nanoseconds = std::max<std::int64_t>(timeout->count(), 0);
    limit.tv_sec = nanoseconds / 1'000'000'000;
    limit.tv_nsec = nanoseconds % 1'000'000'000;
    argument.ts = reinterpret_cast<std::uint64_t>(&limit);
  }
  __atomic_store_n(sq_tail_, tail_, __ATOMIC_RELEASE);
  const unsigned unsubmitted = tail_ - __atomic_load_n(sq_head_, __ATOMIC_ACQUIRE);
  const long result =
      syscall(__NR_io_uring_enter, fd_, unsubmitted, 1,
              IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof(argument));
  if (result >= 0) return 0;
  const bool passing = errno == ETIME || errno == EINTR || errno == EAGAIN || errno == EBUSY;
  return passing ? 0 : errno;
}

bool Uring::create_file_table(unsigned slots) {
  const std::vector<int> empty(slots, -1);
  return enroll(fd_, IORING_REGISTER_FILES, empty.data(), slots) == 0;
}

bool Uring::set_file(unsigned slot, int fd) {
  io_uring_files_update update{};
  update.offset = slot;
  update.fds = reinterpret_cast<std::uint64_t>(&fd);
  return enroll(fd_, IORING_REGISTER_FILES_UPDATE, &update, 1) == 1;
}

#ifdef IORING_RSRC_REGISTER_SPARSE
bool Uring::create_buffer_table(unsigned slots) {
  io_uring_rsrc_register table{};
  table.nr = slots;
  table.flags = IORING_RSRC_REGISTER_SPARSE;
  return enroll(fd_, IORING_REGISTER_BUFFERS2, &table, sizeof(table)) == 0;
}

bool Uring::set_buffer(unsigned slot, std::span<std::byte> memory) {
  iovec vector{memory.data(), memory.size()};
  io_uring_rsrc_update2 update{};
  update.offset = slot;
  update.data = reinterpret_cast<std::uint64_t>(&vector);
  update.nr = 1;
  return enroll(fd_, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof(update)) == 1;
}
#else  // headers older than Linux 5.19
bool Uring::create_buffer_table(unsigned) { return false; }
bool Uring::set_buffer(unsigned, std::span<std::byte>) { return false; }
#endif

}  // namespace headgate

#endif
