#include "io/read_scheduler.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <stdexcept>
#include <utility>

namespace headgate {
namespace {

template <typename Item>
const Item& entry(const std::vector<Item>& items, int index, const char* refusal) {
  if (index < 0 || static_cast<std::size_t>(index) >= items.size()) {
    throw std::out_of_range(refusal);
  }
  return items[index];
}

}  // namespace

// The first octave with four whole microseconds in it starts at 4; below, a bucket is 1 us wide.
std::uint64_t LatencyHistogram::lower_us(std::size_t bucket) {
  if (bucket < 4) return bucket;
  return std::uint64_t{4 + bucket % 4} << (bucket / 4 - 1);
}

void LatencyHistogram::add(std::int64_t nanoseconds) {
  const std::uint64_t us = nanoseconds > 0 ? static_cast<std::uint64_t>(nanoseconds) / 1000 : 0;
  std::size_t bucket = us;
  if (us >= 4) {
    const std::size_t octave = std::bit_width(us) - 1;
    bucket = 4 * (octave - 1) + (us >> (octave - 2) & 3);
  }
  ++counts[std::min(bucket, kBuckets - 1)];
}

bool Chunk::advance(std::int64_t result) {
  if (result == -EINTR || result == -EAGAIN) return false;
  if (result < 0) {
    error = static_cast<int>(-result);
    return true;
  }
  const auto reached = static_cast<std::uint32_t>(position + result);
  if (reached >= length) {
    received = length;
    return true;
  }
  // A direct file reads on from an aligned position, so it may return old bytes only: the end.
  if (result == 0 || reached <= received) {
    error = kEndOfFile;
    return true;
  }
  received = reached;
  position =
      request->direct ? reached & ~static_cast<std::uint32_t>(kDirectAlignment - 1) : reached;
  return false;
}

void Chunk::scatter(std::byte* scrap, std::vector<iovec>& out) const {
  out.clear();
  const auto add = [&](std::byte* to, std::uint64_t bytes) {
    if (!out.empty()) {  // neighbours in memory too, perhaps
      iovec& last = out.back();
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == to) {
        last.iov_len += bytes;
        return;
      }
    }
    out.push_back({to, static_cast<std::size_t>(bytes)});
  };
  std::uint64_t at = offset + position;
  const std::uint64_t end = offset + length;
  for (const ReadPart& part : request->parts) {
    const std::uint64_t begins = part.spec.offset, ends = begins + part.spec.length;
    if (at >= ends) continue;
    if (at < begins) add(scrap, begins - at);
    at = std::max(at, begins);
    const std::uint64_t bytes = std::min(end, ends) - at;
    add(part.destination + (at - begins), bytes);
    at += bytes;
    if (at == end) return;
  }
}

ReadScheduler::ReadScheduler(unsigned depth, unsigned background_depth, std::size_t chunk_bytes)
    : depth_(depth), background_depth_(background_depth), chunk_bytes_(chunk_bytes) {}

int ReadScheduler::add_file(OpenFile file) {
  const std::lock_guard lock(mutex_);
  files_.push_back(std::move(file));
  return static_cast<int>(files_.size() - 1);
}

int ReadScheduler::add_buffer(std::shared_ptr<AlignedBuffer> buffer) {
  const std::lock_guard lock(mutex_);
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size() - 1);
}

bool ReadScheduler::file_is_direct(int file) const {
  const std::lock_guard lock(mutex_);
  return entry(files_, file, "no such file").direct();
}

std::size_t ReadScheduler::buffer_size(int buffer) const {
  const std::lock_guard lock(mutex_);
  return entry(buffers_, buffer, "no such buffer")->size();
}

std::vector<int> ReadScheduler::files_from(std::size_t from) const {
  const std::lock_guard lock(mutex_);
  std::vector<int> fds;
  for (std::size_t i = from; i < files_.size(); ++i) fds.push_back(files_[i].fd());
  return fds;
}

std::vector<std::span<std::byte>> ReadScheduler::buffers_from(std::size_t from) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::span<std::byte>> spans;
  for (std::size_t i = from; i < buffers_.size(); ++i) {
    spans.emplace_back(buffers_[i]->data(), buffers_[i]->size());
  }
  return spans;
}

std::shared_ptr<PendingRead> ReadScheduler::prepare(std::span<const ReadRequest> run) const {
  auto read = std::make_shared<PendingRead>();
  const ReadRequest &first = run.front(), &last = run.back();
  read->parts.reserve(run.size());
  for (const ReadRequest& spec : run) {
    read->parts.push_back({spec, buffers_[spec.buffer]->data() + spec.buffer_offset});
  }
  read->fd = files_[first.file].fd();
  read->direct = files_[first.file].direct();
  read->priority = first.priority;
  read->offset = first.offset;
  read->length = last.offset + last.length - first.offset;
  // Even pieces: a small remainder would cost a whole latency for few bytes.
  const std::uint64_t pieces = (read->length + chunk_bytes_ - 1) / chunk_bytes_;
  const std::uint64_t even = (read->length + pieces - 1) / pieces;
  read->piece = (even + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment;
  return read;
}

void ReadScheduler::enqueue(std::span<const ReadRequest> requests,
                            std::span<const std::size_t> runs) {
  const Clock::time_point now = Clock::now();
  std::vector<std::shared_ptr<PendingRead>> reads;
  reads.reserve(requests.size());
  const std::lock_guard lock(mutex_);
  if (stopping_) throw std::invalid_argument("submit: the queue is closed");
  for (std::size_t next = 0, i = 0; next < requests.size(); ++i) {
    const std::size_t size = runs.empty() ? 1 : runs[i];
    reads.push_back(prepare(requests.subspan(next, size)));
    reads.back()->submitted = now;
    next += size;
  }
  for (auto& read : reads) queue_of(*read).push_back(std::move(read));
  incomplete_ += requests.size();
}

ReadScheduler::Queue* ReadScheduler::next_queue() {
  if (stopping_ || in_flight_ >= depth_) return nullptr;
  if (!demand_.empty()) return &demand_;
  if (!background_.empty() && in_flight_ < background_depth_) return &background_;
  return nullptr;
}

bool ReadScheduler::throttled(Clock::time_point now) const {
  return bytes_per_second_ > 0 && now < next_issue_;
}

Chunk ReadScheduler::carve(Queue& queue, Clock::time_point now) {
  Chunk chunk;
  chunk.request = queue.front();
  PendingRead& read = *chunk.request;
  chunk.offset = read.offset + read.cursor;
  chunk.length = static_cast<std::uint32_t>(std::min(read.piece, read.length - read.cursor));
  chunk.issued = now;
  read.cursor += chunk.length;
  ++read.in_flight;
  if (read.cursor == read.length) queue.pop_front();
  stats_.max_depth = std::max(stats_.max_depth, ++in_flight_);
  if (bytes_per_second_ > 0) {
    // A late wake-up may be made good up to this much, so that the rate holds on average.
    constexpr std::chrono::milliseconds kCatchUp(5);
    const std::chrono::duration<double> cost(chunk.length / bytes_per_second_);
    next_issue_ =
        std::max(next_issue_, now - kCatchUp) + std::chrono::duration_cast<Clock::duration>(cost);
  }
  return chunk;
}

void ReadScheduler::take(std::size_t limit, std::vector<Chunk>& out,
                         std::optional<Clock::time_point>* retry_at) {
  const Clock::time_point now = Clock::now();
  const std::lock_guard lock(mutex_);
  for (; limit > 0; --limit) {
    Queue* queue = next_queue();
    if (queue == nullptr) return;
    if (throttled(now)) {
      *retry_at = next_issue_;
      return;
    }
    out.push_back(carve(*queue, now));
  }
}

std::optional<Chunk> ReadScheduler::take_blocking() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Clock::time_point now = Clock::now();
    Queue* queue = next_queue();
    if (queue == nullptr) {
      work_.wait(lock);
    } else if (throttled(now)) {
      work_.wait_until(lock, next_issue_);
    } else {
      return carve(*queue, now);
    }
  }
  return std::nullopt;
}

void ReadScheduler::wake_takers() {
  // Through the mutex: a taker between its check and its wait would miss the call.
  {
    const std::lock_guard lock(mutex_);
  }
  work_.notify_all();
}

void ReadScheduler::complete(const PendingRead& read, Clock::time_point now) {
  const std::chrono::nanoseconds latency = now - read.submitted;
  if (read.parts.size() == 1) {
    done_.push_back({read.parts[0].spec.tag, read.error, read.received, latency.count()});
    --incomplete_;
    return;
  }
  for (const auto& [spec, destination] : read.parts) {
    const std::uint64_t before = spec.offset - read.offset;
    const std::uint64_t got = std::clamp(read.received, before, before + spec.length) - before;
    const int error = got == spec.length ? 0 : read.error;
    done_.push_back({spec.tag, error, got, latency.count()});
  }
  incomplete_ -= read.parts.size();
}

// After an error of a run: what has all its bytes is complete, the rest is read one by one.
void ReadScheduler::split(const PendingRead& run, Clock::time_point now) {
  PendingRead whole;
  whole.offset = run.offset;
  whole.received = run.received;
  whole.submitted = run.submitted;
  std::vector<std::shared_ptr<PendingRead>> rest;
  for (const ReadPart& part : run.parts) {
    if (part.spec.offset + part.spec.length <= run.offset + run.received) {
      whole.parts.push_back(part);
    } else {
      rest.push_back(prepare({&part.spec, 1}));
      rest.back()->submitted = run.submitted;
    }
  }
  if (!whole.parts.empty()) {
    if (whole.parts.size() == 1) whole.received = whole.parts[0].spec.length;
    complete(whole, now);
  }
  Queue& queue = queue_of(run);
  queue.insert(queue.begin(), rest.begin(), rest.end());
}

void ReadScheduler::account(Chunk& chunk, Clock::time_point now) {
  PendingRead& read = *chunk.request;
  --in_flight_;
  --read.in_flight;
  read.received += chunk.received;
  ++stats_.count;
  stats_.bytes += chunk.received;
  stats_.latency.add(std::chrono::nanoseconds(now - chunk.issued).count());
  if (chunk.error != 0 && read.parts.size() > 1 && !stopping_) {
    split(read, now);
    chunk.request.reset();
    return;
  }
  if (chunk.error != 0) {
    // An errno says more than an end of file; among those the first stays.
    if (read.error == 0 || (read.error == kEndOfFile && chunk.error > 0)) read.error = chunk.error;
    if (read.cursor < read.length) {  // the rest would only fail again
      std::erase(queue_of(read), chunk.request);
      read.cursor = read.length;
    }
  }
  if (read.in_flight == 0 && read.cursor == read.length) complete(read, now);
  chunk.request.reset();
}

void ReadScheduler::finish(std::span<Chunk> chunks) {
  if (chunks.empty()) return;
  const Clock::time_point now = Clock::now();
  {
    const std::lock_guard lock(mutex_);
    for (Chunk& chunk : chunks) account(chunk, now);
  }
  completed_.notify_all();
}

bool ReadScheduler::block(std::unique_lock<std::mutex>& lock, std::size_t min_completions,
                          std::chrono::nanoseconds timeout) {
  const auto ready = [&] { return done_.size() >= min_completions || incomplete_ == 0; };
  constexpr std::chrono::hours kForever(24 * 365);  // beyond it a deadline might overflow
  if (timeout.count() >= 0 && timeout < kForever) {
    return completed_.wait_for(lock, timeout, ready);
  }
  completed_.wait(lock, ready);
  return true;
}

bool ReadScheduler::wait_ready(std::size_t min_completions, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  return block(lock, min_completions, timeout);
}

std::vector<Completion> ReadScheduler::wait(std::size_t min_completions,
                                            std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  block(lock, min_completions, timeout);
  return std::exchange(done_, {});
}

std::vector<std::uint64_t> ReadScheduler::cancel_background() {
  std::vector<std::uint64_t> tags;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(background_, [&](const auto& read) {
      if (read->cursor > 0) return false;
      for (const ReadPart& part : read->parts) tags.push_back(part.spec.tag);
      return true;
    });
    incomplete_ -= tags.size();
  }
  completed_.notify_all();
  return tags;
}

std::size_t ReadScheduler::outstanding() const {
  const std::lock_guard lock(mutex_);
  return incomplete_ + done_.size();
}

ReadStats ReadScheduler::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void ReadScheduler::reset_stats() {
  const std::lock_guard lock(mutex_);
  stats_ = {};
  stats_.max_depth = in_flight_;
}

void ReadScheduler::set_throttle(double bytes_per_second) {
  const std::lock_guard lock(mutex_);
  bytes_per_second_ = bytes_per_second;
  next_issue_ = Clock::time_point{};
}

void ReadScheduler::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (Queue* queue : {&demand_, &background_}) {
      for (const auto& read : *queue) {
        if (read->in_flight == 0) {
          incomplete_ -= read->parts.size();
        } else {  // completes, cut short, with the chunks that are under way
          if (read->error == 0) read->error = ECANCELED;
          read->cursor = read->length;
        }
      }
      queue->clear();
    }
  }
  completed_.notify_all();
  work_.notify_all();
}

bool ReadScheduler::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

}  // namespace headgate
