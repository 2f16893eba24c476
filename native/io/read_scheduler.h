#pragma once

#include <sys/uio.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "io/open_file.h"
#include "io/read_queue.h"

namespace headgate {

using Clock = std::chrono::steady_clock;

// A request, and where in memory its bytes go.
struct ReadPart {
  ReadRequest spec;
  std::byte* destination = nullptr;
};

// A request or a run on its way. The scheduler's mutex guards what changes in it.
struct PendingRead {
  std::vector<ReadPart> parts;  // several: a run, always a single chunk
  int fd = -1;
  bool direct = false;
  Priority priority = Priority::kDemand;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // from the first part to the end of the last
  std::uint64_t piece = 0;   // bytes per chunk, the last may be shorter
  std::uint64_t cursor = 0;  // bytes handed out as chunks
  std::uint64_t received = 0;
  unsigned in_flight = 0;
  int error = 0;
  Clock::time_point submitted;
};

// One read as the drive sees it. Owned by the backend between take() and finish().
struct Chunk {
  std::shared_ptr<PendingRead> request;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint32_t position = 0;  // the next read continues here: aligned when the file is direct
  std::uint32_t received = 0;
  int error = 0;
  Clock::time_point issued;

  // Takes in the result of one read of [position, length): bytes, or minus an errno. Returns true
  // when the chunk is finished; false when it must be read on from `position`.
  bool advance(std::int64_t result);

  // Puts into `out` where the bytes of [position, length) go, in order. Gaps go to `scrap`, of
  // kLargestGap bytes; a chunk that is not of a run has none.
  void scatter(std::byte* scrap, std::vector<iovec>& out) const;
  bool of_run() const { return request->parts.size() > 1; }
};

// The queue itself: what waits, what is in flight, what is done. Knows nothing of how reads are
// carried out. All members are thread-safe. Used by ReadQueue on one side and by one ReadBackend on
// the other; see read_queue.h for the rules of order.
class ReadScheduler {
 public:
  ReadScheduler(unsigned depth, unsigned background_depth, std::size_t chunk_bytes);

  // --- for ReadQueue ---
  int add_file(OpenFile file);
  int add_buffer(std::shared_ptr<AlignedBuffer> buffer);
  bool file_is_direct(int file) const;        // throws std::out_of_range
  std::size_t buffer_size(int buffer) const;  // throws std::out_of_range
  void enqueue(std::span<const ReadRequest> requests, std::span<const std::size_t> runs);  // valid
  bool wait_ready(std::size_t min_completions, std::chrono::nanoseconds timeout);
  std::vector<Completion> wait(std::size_t min_completions, std::chrono::nanoseconds timeout);
  std::vector<std::uint64_t> cancel_background();
  std::size_t outstanding() const;
  ReadStats stats() const;
  void reset_stats();
  void set_throttle(double bytes_per_second);
  void stop();  // drops what is not issued; nothing is handed out from now on

  // --- for the backend ---
  // Moves up to `limit` chunks to the end of `out`. When the throttle holds chunks back, *retry_at
  // becomes the time to ask again; otherwise it is untouched.
  void take(std::size_t limit, std::vector<Chunk>& out, std::optional<Clock::time_point>* retry_at);
  // Blocks for a chunk; empty after stop().
  std::optional<Chunk> take_blocking();
  void wake_takers();
  void finish(std::span<Chunk> chunks);
  bool stopping() const;

  // What was added since `from`, for registration with the kernel. Both live as long as this.
  std::vector<int> files_from(std::size_t from) const;
  std::vector<std::span<std::byte>> buffers_from(std::size_t from) const;

 private:
  using Queue = std::deque<std::shared_ptr<PendingRead>>;

  std::shared_ptr<PendingRead> prepare(std::span<const ReadRequest> run) const;
  Queue& queue_of(const PendingRead& read) {
    return read.priority == Priority::kDemand ? demand_ : background_;
  }
  Queue* next_queue();
  Chunk carve(Queue& queue, Clock::time_point now);
  bool throttled(Clock::time_point now) const;
  void account(Chunk& chunk, Clock::time_point now);
  void complete(const PendingRead& read, Clock::time_point now);
  void split(const PendingRead& run, Clock::time_point now);
  bool block(std::unique_lock<std::mutex>& lock, std::size_t min_completions,
             std::chrono::nanoseconds timeout);

  const unsigned depth_;
  const unsigned background_depth_;
  const std::size_t chunk_bytes_;

  mutable std::mutex mutex_;
  std::condition_variable work_;       // for take_blocking()
  std::condition_variable completed_;  // for wait_ready()
  std::vector<OpenFile> files_;
  std::vector<std::shared_ptr<AlignedBuffer>> buffers_;
  Queue demand_;
  Queue background_;
  std::vector<Completion> done_;
  std::size_t incomplete_ = 0;  // requests submitted and not complete
  unsigned in_flight_ = 0;      // chunks
  bool stopping_ = false;
  double bytes_per_second_ = 0;
  Clock::time_point next_issue_{};
  ReadStats stats_;
};

}  // namespace headgate
