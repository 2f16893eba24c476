#include "io/read_queue.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "io/open_file.h"
#include "io/read_backend.h"
#include "io/read_scheduler.h"

namespace headgate {
namespace {

ReadQueueOptions checked(ReadQueueOptions options) {
  constexpr unsigned kMostInFlight = 4096;
  constexpr std::size_t kLargestChunk = std::size_t{1} << 30;  // a read takes 32 bits of length
  if (options.depth < 1 || options.depth > kMostInFlight) {
    throw std::invalid_argument("ReadQueue: depth must be 1 to 4096");
  }
  if (options.chunk_bytes < kDirectAlignment || options.chunk_bytes > kLargestChunk ||
      options.chunk_bytes % kDirectAlignment != 0) {
    throw std::invalid_argument("ReadQueue: chunk_bytes must be a multiple of 4096 up to 1 GiB");
  }
  if (options.background_depth < 1) {
    throw std::invalid_argument("ReadQueue: background_depth must be positive");
  }
  if (options.threads > kMostInFlight) {
    throw std::invalid_argument("ReadQueue: threads must be at most 4096");
  }
  constexpr unsigned kDefaultThreads = 16;  // drives gain little beyond; each costs a stack
  if (options.threads == 0) options.threads = kDefaultThreads;
  options.threads = std::min(options.threads, options.depth);
  options.background_depth = std::min(options.background_depth, options.depth);
  return options;
}

}  // namespace

ReadQueue::ReadQueue(const ReadQueueOptions& options) : options_(checked(options)) {
  scheduler_ = std::make_unique<ReadScheduler>(options_.depth, options_.background_depth,
                                               options_.chunk_bytes);
  if (options_.backend != BackendKind::kPread) {
    int error = 0;
    backend_ = make_uring_backend(*scheduler_, options_.depth, options_.register_buffers, &error);
    if (backend_) return;
    if (options_.backend == BackendKind::kIoUring) {
      throw std::system_error(error, std::generic_category(), "io_uring");
    }
  }
  // A pool has no more in flight than threads, and background must leave some to demand.
  scheduler_ = std::make_unique<ReadScheduler>(
      options_.threads, std::min(options_.background_depth, std::max(1U, options_.threads / 2)),
      options_.chunk_bytes);
  backend_ = make_pread_backend(*scheduler_, options_.threads);
}

ReadQueue::~ReadQueue() { close(); }

const char* ReadQueue::backend() const { return backend_->name(); }

int ReadQueue::add_file(const std::string& path, FileMode mode) {
  const int index = scheduler_->add_file(OpenFile(path, mode));
  backend_->wake();
  return index;
}

bool ReadQueue::file_is_direct(int file) const { return scheduler_->file_is_direct(file); }

int ReadQueue::add_buffer(std::shared_ptr<AlignedBuffer> buffer) {
  if (!buffer) throw std::invalid_argument("add_buffer: no buffer");
  const int index = scheduler_->add_buffer(std::move(buffer));
  backend_->wake();
  return index;
}

void ReadQueue::validate(const ReadRequest& request) const {
  const bool direct = scheduler_->file_is_direct(request.file);
  const std::uint64_t room = scheduler_->buffer_size(request.buffer);
  constexpr std::uint64_t kLargestOffset = std::numeric_limits<std::int64_t>::max();
  if (request.length == 0) throw std::invalid_argument("submit: length must be positive");
  if (request.offset > kLargestOffset || request.length > kLargestOffset - request.offset) {
    throw std::out_of_range("submit: offset and length exceed what a file can have");
  }
  if (request.length > room || request.buffer_offset > room - request.length) {
    throw std::out_of_range("submit: the destination leaves its buffer");
  }
  if (request.priority != Priority::kDemand && request.priority != Priority::kBackground) {
    throw std::invalid_argument("submit: priority must be 0 (demand) or 1 (background)");
  }
  const std::uint64_t bits = request.offset | request.length | request.buffer_offset;
  if (direct && bits % kDirectAlignment != 0) {
    throw std::invalid_argument(
        "submit: a direct file needs offset, length and destination in multiples of 4096");
  }
}

void ReadQueue::validate_run(std::span<const ReadRequest> run) const {
  if (run.size() > kMostInRun) throw std::invalid_argument("submit: too many requests in a run");
  const ReadRequest& first = run.front();
  std::uint64_t end = first.offset;
  for (const ReadRequest& request : run) {
    if (request.file != first.file || request.priority != first.priority) {
      throw std::invalid_argument("submit: a run has one file and one priority");
    }
    if (request.offset < end || (request.offset - end) > kLargestGap) {
      throw std::invalid_argument("submit: a run ascends, with gaps of 256 KiB at most");
    }
    end = request.offset + request.length;
  }
  if (end - first.offset > options_.chunk_bytes) {
    throw std::invalid_argument("submit: a run exceeds chunk_bytes");
  }
}

void ReadQueue::submit(std::span<const ReadRequest> requests, std::span<const std::size_t> runs) {
  for (const ReadRequest& request : requests) validate(request);
  std::size_t next = 0;
  for (const std::size_t size : runs) {
    if (size == 0 || size > requests.size() - next) {
      throw std::invalid_argument("submit: runs must be positive and add up to the requests");
    }
    if (size > 1) validate_run(requests.subspan(next, size));
    next += size;
  }
  if (!runs.empty() && next != requests.size()) {
    throw std::invalid_argument("submit: runs must be positive and add up to the requests");
  }
  scheduler_->enqueue(requests, runs);
  backend_->wake();
}

std::vector<Completion> ReadQueue::wait(std::size_t min_completions,
                                        std::chrono::nanoseconds timeout) {
  return scheduler_->wait(min_completions, timeout);
}

bool ReadQueue::wait_ready(std::size_t min_completions, std::chrono::nanoseconds timeout) {
  return scheduler_->wait_ready(min_completions, timeout);
}

std::vector<std::uint64_t> ReadQueue::cancel_background() {
  return scheduler_->cancel_background();
}

std::size_t ReadQueue::outstanding() const { return scheduler_->outstanding(); }

void ReadQueue::drain() {
  scheduler_->wait_ready(std::numeric_limits<std::size_t>::max(), std::chrono::nanoseconds(-1));
}

ReadStats ReadQueue::stats() const { return scheduler_->stats(); }

void ReadQueue::reset_stats() { scheduler_->reset_stats(); }

void ReadQueue::set_throttle(double bytes_per_second) {
  if (!std::isfinite(bytes_per_second) || bytes_per_second < 0) {
    throw std::invalid_argument("set_throttle: the rate must be finite and not negative");
  }
  scheduler_->set_throttle(bytes_per_second);
  backend_->wake();
}

void ReadQueue::close() {
  scheduler_->stop();
  backend_->wake();
  drain();
}

}  // namespace headgate
