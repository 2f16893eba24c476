#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/aligned_buffer.h"

namespace headgate {

class ReadBackend;
class ReadScheduler;

enum class BackendKind { kAuto, kIoUring, kPread };
enum class FileMode { kAuto, kDirect, kBuffered };
enum class Priority : int { kDemand = 0, kBackground = 1 };

// Completion::error of a request that met the end of its file before its length.
inline constexpr int kEndOfFile = -1;

// Limits of a run, several requests that are carried out as one read.
inline constexpr std::size_t kMostInRun = 256;  // with gaps between, still below IOV_MAX of 1024
inline constexpr std::size_t kLargestGap = std::size_t{1} << 18;

struct ReadQueueOptions {
  BackendKind backend = BackendKind::kAuto;  // auto: io_uring where the system allows it
  unsigned depth = 32;                       // chunk reads in flight at most, 1 to 4096
  std::size_t chunk_bytes = 1 << 20;         // multiple of 4096, 1 GiB at most
  unsigned threads = 0;                      // of the pread pool; 0: min(depth, 16)
  unsigned background_depth = 8;             // background reads start below this many in flight
  bool register_buffers = true;              // io_uring: pin buffers once instead of at every read
};

struct ReadRequest {
  std::uint64_t tag = 0;  // returned as it is; need not be unique
  int file = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  int buffer = 0;
  std::uint64_t buffer_offset = 0;
  Priority priority = Priority::kDemand;
};

struct Completion {
  std::uint64_t tag = 0;
  int error = 0;            // 0, an errno, or kEndOfFile
  std::uint64_t bytes = 0;  // at end of file these lead the destination; after an errno they may
                            // have holes
  std::int64_t latency_ns = 0;  // from submit() to the last chunk
};

// Latencies in microseconds, four buckets to an octave: bucket i starts at lower_us(i).
struct LatencyHistogram {
  static constexpr std::size_t kBuckets = 4 * 26;  // the last one starts at 117 s
  std::array<std::uint64_t, kBuckets> counts{};

  static std::uint64_t lower_us(std::size_t bucket);
  void add(std::int64_t nanoseconds);
};

struct ReadStats {
  std::uint64_t count = 0;  // chunk reads, from issue to completion; a run is one
  std::uint64_t bytes = 0;  // gaps of runs included
  unsigned max_depth = 0;   // most chunk reads in flight at once
  LatencyHistogram latency;
};

// A queue of reads from files into AlignedBuffers, completed in the order that the drive finishes.
//
// Threads: the queue runs its own, one that owns the ring under io_uring, a pool under pread. The
// engine submits a layer, multiplies for milliseconds, then waits; were reads only issued and
// reaped inside calls, the drive would idle through every multiply once `depth` chunks were done,
// and submission (tens of microseconds per MiB) would be paid by the compute thread.
//
// Order: demand requests go in the order submitted, each cut into chunks that run concurrently. A
// background chunk starts only when no demand chunk is queued and fewer than `background_depth`
// chunks are in flight, so that a later demand read waits behind few of them.
//
// Runs: requests for neighbouring parts of a file may be carried out as one read with several
// destinations; what lies between them is read too and thrown away. Each request still has its own
// completion: after an error, those that have not got all their bytes are read one by one, so that
// an unreadable place costs only the request that it belongs to.
//
// Ownership: keeps its buffers and files until destroyed. A destination belongs to the queue from
// submit() until the request is returned by wait() or cancel_background(); nothing checks overlap.
// Registered buffers are pinned, hence resident, from add_buffer() on.
//
// Thread-safety: every member may be called from any thread. A completion goes to one waiter.
// Not to be used in a child after fork().
//
// Failure: a failed read is a Completion with an error, never an exception. Constructor and
// add_file() throw std::system_error; bad arguments throw std::invalid_argument or
// std::out_of_range before anything is queued; so does every submit() after close().
class ReadQueue {
 public:
  explicit ReadQueue(const ReadQueueOptions& options = {});
  ~ReadQueue();  // as close()
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;

  const char* backend() const;  // "io_uring" or "pread": the one in use

  // Opens `path` and returns its index. auto: bypasses the page cache where the file system allows
  // it (a 4 KiB trial read decides), else buffered. The message of a failure names the path.
  int add_file(const std::string& path, FileMode mode = FileMode::kAuto);

  // Requests on a direct file need offset, length and destination in multiples of
  // kDirectAlignment; a length may reach past the end of the file, and meets kEndOfFile there.
  bool file_is_direct(int file) const;

  int add_buffer(std::shared_ptr<AlignedBuffer> buffer);

  // Queues all requests, or none when one of them is invalid. `runs`, if there are any, are the
  // sizes of groups of successive requests, and add up to their number. A group of several is a
  // run: of one file and priority, ascending without overlap, with gaps of kLargestGap at most and
  // chunk_bytes at most from end to end; it is not cut.
  void submit(std::span<const ReadRequest> requests, std::span<const std::size_t> runs = {});

  // Blocks until `min_completions` requests are complete, fewer when no more are outstanding, or
  // until the timeout (negative: none). Returns everything that is complete, in that order.
  std::vector<Completion> wait(std::size_t min_completions, std::chrono::nanoseconds timeout);

  // Blocks as wait() does but collects nothing; false on timeout.
  bool wait_ready(std::size_t min_completions, std::chrono::nanoseconds timeout);

  // Drops the background requests of which nothing was issued yet, or that wait to be read again
  // after a run failed, and returns their tags; they yield no completion.
  std::vector<std::uint64_t> cancel_background();

  std::size_t outstanding() const;  // submitted, and not yet returned by wait() or cancelled
  void drain();                     // blocks until every request is complete; collects nothing

  ReadStats stats() const;
  void reset_stats();
  void set_throttle(double bytes_per_second);  // limits the rate of issue; 0: no limit

  // Drops what is not issued, waits for the reads in flight (the kernel may be writing into the
  // buffers), wakes every waiter. Completions stay collectable. Idempotent.
  void close();

 private:
  void validate(const ReadRequest& request) const;
  void validate_run(std::span<const ReadRequest> run) const;

  ReadQueueOptions options_;
  std::unique_ptr<ReadScheduler> scheduler_;
  std::unique_ptr<ReadBackend> backend_;  // after the scheduler that it uses
};

}  // namespace headgate
