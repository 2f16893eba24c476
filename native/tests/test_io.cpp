// Claims about native/io: checksums, and the read queue on both backends.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "io/aligned_buffer.h"
#include "io/crc32c.h"
#include "io/read_queue.h"

namespace headgate {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;

constexpr nanoseconds kNoTimeout(-1);
constexpr std::size_t kFileBytes = (std::size_t{3} << 20) + 1234;  // ends inside a block
constexpr std::size_t kWholeBlocks = kFileBytes / 4096 * 4096;

std::uint32_t crc32c_bitwise(const std::uint8_t* bytes, std::size_t size) {
  std::uint32_t state = ~std::uint32_t{0};
  for (std::size_t i = 0; i < size; ++i) {
    state ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) ? 0x82F63B78U : 0U);
  }
  return ~state;
}

void crc32c_matches_published_vectors() {
  CHECK(crc32c("123456789", 9) == 0xE3069283);
  std::uint8_t block[32] = {};  // RFC 3720, appendix B.4
  CHECK(crc32c(block, 32) == 0x8A9136AA);
  std::memset(block, 0xFF, 32);
  CHECK(crc32c(block, 32) == 0x62A8AB43);
  for (int i = 0; i < 32; ++i) block[i] = static_cast<std::uint8_t>(i);
  CHECK(crc32c(block, 32) == 0x46DD794E);
}

void crc32c_matches_the_bitwise_definition_and_chains() {
  std::mt19937 random(7);
  std::vector<std::uint8_t> bytes(50000);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  const auto check = [&](std::size_t start, std::size_t size) {
    const std::uint8_t* at = bytes.data() + start;
    const std::uint32_t expected = crc32c_bitwise(at, size);
    CHECK(crc32c(at, size) == expected);
    CHECK(crc32c_portable(at, size) == expected);
    const std::size_t cut = size == 0 ? 0 : random() % size;
    CHECK(crc32c(at + cut, size - cut, crc32c(at, cut)) == expected);
  };
  for (std::size_t size = 0; size <= 300; ++size) check(size % 9, size);
  for (std::size_t size : {767, 768, 769, 12287, 12288, 12289, 13056, 40001, 49990}) check(3, size);
}

void aligned_buffers_are_aligned_and_bounded() {
  const auto address = [](const AlignedBuffer& b) {
    return reinterpret_cast<std::uintptr_t>(b.data());
  };
  for (std::size_t size : {1, 4096, 4097, 3 << 20}) {
    AlignedBuffer small(size), huge(size, true);
    CHECK(address(small) % 4096 == 0 && small.size() == size);
    CHECK(address(huge) % (2 << 20) == 0 && huge.size() == size);
    small.data()[size - 1] = huge.data()[size - 1] = std::byte{1};
  }
  CHECK_THROWS(AlignedBuffer(0), std::invalid_argument);
  CHECK_THROWS(AlignedBuffer(std::numeric_limits<std::size_t>::max()), std::bad_alloc);
  CHECK_THROWS(AlignedBuffer(std::numeric_limits<std::size_t>::max(), true), std::bad_alloc);
  CHECK_THROWS(AlignedBuffer(std::size_t{1} << 60), std::bad_alloc);
}

void histogram_buckets_cover_every_latency() {
  for (std::int64_t us : {0, 1, 3, 4, 5, 7, 8, 9, 10, 15, 16, 999, 1000, 123456, 99999999}) {
    LatencyHistogram histogram;
    histogram.add(us * 1000 + 1);
    for (std::size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
      if (histogram.counts[i] == 0) continue;
      CHECK(LatencyHistogram::lower_us(i) <= static_cast<std::uint64_t>(us));
      CHECK(LatencyHistogram::lower_us(i + 1) > static_cast<std::uint64_t>(us));
    }
  }
  LatencyHistogram histogram;
  histogram.add(std::numeric_limits<std::int64_t>::max());
  histogram.add(-1);
  CHECK(histogram.counts.back() == 1 && histogram.counts.front() == 1);
}

// A file of random bytes that lives as long as the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::size_t size) : path_("headgate_io_XXXXXX"), bytes_(size) {
    const int fd = mkstemp(path_.data());
    CHECK(fd >= 0);
    std::mt19937_64 random(11);
    for (std::size_t i = 0; i + 8 <= size; i += 8) {
      const std::uint64_t word = random();
      std::memcpy(bytes_.data() + i, &word, 8);
    }
    CHECK(write(fd, bytes_.data(), size) == static_cast<ssize_t>(size));
    CHECK(fsync(fd) == 0);
    close(fd);
  }
  ~TemporaryFile() { unlink(path_.c_str()); }

  const std::string& path() const { return path_; }
  const std::uint8_t* at(std::uint64_t offset) const { return bytes_.data() + offset; }

 private:
  std::string path_;
  std::vector<std::uint8_t> bytes_;
};

// A queue with one file and one buffer, and the variations that every claim is tried on.
struct Rig {
  Rig(BackendKind backend, FileMode mode, unsigned depth = 32, std::size_t chunk = 1 << 16,
      std::size_t buffer_bytes = 8 << 20, bool pin = true)
      : buffer(std::make_shared<AlignedBuffer>(buffer_bytes)),
        queue({.backend = backend,
               .depth = depth,
               .chunk_bytes = chunk,
               .threads = 0,
               .background_depth = 8,
               .register_buffers = pin}),
        mode_(mode) {
    CHECK(queue.add_buffer(buffer) == 0);
  }
  void open(const TemporaryFile& file) {
    queue.add_file(file.path(), mode_);
    if (mode_ == FileMode::kDirect) CHECK(queue.file_is_direct(0));
    if (mode_ == FileMode::kBuffered) CHECK(!queue.file_is_direct(0));
  }
  std::vector<Completion> wait_all() {
    return queue.wait(std::numeric_limits<std::size_t>::max(), kNoTimeout);
  }

  std::shared_ptr<AlignedBuffer> buffer;
  ReadQueue queue;

 private:
  FileMode mode_;
};

void reads_match_the_file(BackendKind backend, FileMode mode, bool pin) {
  const TemporaryFile file(kFileBytes);
  for (std::size_t chunk : {4096, 65536, 1 << 20}) {
    for (unsigned depth : {1U, 3U, 32U}) {
      Rig rig(backend, mode, depth, chunk, 8 << 20, pin);
      rig.open(file);
      const std::uint64_t step = rig.queue.file_is_direct(0) ? 4096 : 1;
      std::mt19937_64 random(depth);
      std::vector<ReadRequest> requests;
      std::uint64_t room = 0, total = 0;
      for (std::uint64_t tag = 0; tag < 37; ++tag) {
        const std::uint64_t length = (random() % 220000 / step + 1) * step;
        const std::uint64_t offset = random() % ((kWholeBlocks - length) / step) * step;
        const auto priority = tag % 3 == 0 ? Priority::kBackground : Priority::kDemand;
        requests.push_back({tag, 0, offset, length, 0, room, priority});
        room += length;
        total += length;
      }
      CHECK(room <= rig.buffer->size());
      rig.queue.submit(requests);
      std::set<std::uint64_t> seen;
      while (rig.queue.outstanding() > 0) {
        for (const Completion& done : rig.queue.wait(1, kNoTimeout)) {
          const ReadRequest& request = requests[done.tag];
          CHECK(done.error == 0 && done.bytes == request.length && done.latency_ns > 0);
          CHECK(seen.insert(done.tag).second);
          CHECK(std::memcmp(rig.buffer->data() + request.buffer_offset, file.at(request.offset),
                            request.length) == 0);
        }
      }
      CHECK(seen.size() == requests.size());
      const ReadStats stats = rig.queue.stats();
      CHECK(stats.bytes == total && stats.count >= total / chunk);
      CHECK(stats.max_depth >= 1 && stats.max_depth <= depth);
      std::uint64_t counted = 0;
      for (std::uint64_t count : stats.latency.counts) counted += count;
      CHECK(counted == stats.count);
      rig.queue.reset_stats();
      CHECK(rig.queue.stats().count == 0);
    }
  }
}

void end_of_file_is_an_error_and_not_a_hang(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode);
  rig.open(file);
  const std::uint64_t far = std::uint64_t{1} << 40;
  rig.queue.submit({{{1, 0, kWholeBlocks - 8192, 1 << 20, 0, 0},
                     {2, 0, far, 4096, 0, 2 << 20},
                     {3, 0, kWholeBlocks, 4096, 0, 3 << 20}}});
  for (const Completion& done : rig.wait_all()) {
    CHECK(done.error == kEndOfFile);
    const std::uint64_t tail = kFileBytes - kWholeBlocks;
    CHECK(done.bytes == (done.tag == 1 ? 8192 + tail : done.tag == 2 ? 0 : tail));
  }
  CHECK(std::memcmp(rig.buffer->data(), file.at(kWholeBlocks - 8192), 8192 + 1234) == 0);
  CHECK(rig.queue.outstanding() == 0);
}

void a_file_truncated_while_queued_is_an_error(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 1);
  rig.open(file);
  rig.queue.set_throttle(1 << 20);  // 64 KiB: every 62 ms
  rig.queue.submit({{{1, 0, 0, 1 << 20, 0, 0}, {2, 0, 1 << 20, 1 << 20, 0, 1 << 20}}});
  CHECK(truncate(file.path().c_str(), 100000) == 0);
  rig.queue.set_throttle(0);
  for (const Completion& done : rig.wait_all()) {
    CHECK(done.error == kEndOfFile);
    CHECK(done.bytes < (1 << 20) && (done.tag == 1 || done.bytes == 0));
  }
}

void invalid_requests_are_refused_as_a_batch(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode);
  rig.open(file);
  const ReadRequest good{1, 0, 0, 4096, 0, 0};
  const std::uint64_t size = rig.buffer->size();
  const std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  const auto refused = [&](ReadRequest bad) { rig.queue.submit({{good, bad}}); };
  CHECK_THROWS(refused({1, 1, 0, 4096, 0, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, -1, 0, 4096, 0, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 4096, 1, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 4096, -1, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 0, 0, 0}), std::invalid_argument);
  CHECK_THROWS(refused({1, 0, 0, size + 4096, 0, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 4096, 0, size}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 4096, 0, most - 4095}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, most - 4095, 0, 4096}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, most - 4095, 4096, 0, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, most / 2 - 4095, 8192, 0, 0}), std::out_of_range);
  CHECK_THROWS(refused({1, 0, 0, 4096, 0, 0, static_cast<Priority>(2)}), std::invalid_argument);
  if (rig.queue.file_is_direct(0)) {
    CHECK_THROWS(refused({1, 0, 512, 4096, 0, 0}), std::invalid_argument);
    CHECK_THROWS(refused({1, 0, 0, 4097, 0, 0}), std::invalid_argument);
    CHECK_THROWS(refused({1, 0, 0, 4096, 0, 512}), std::invalid_argument);
  }
  CHECK(rig.queue.outstanding() == 0);
  CHECK(rig.queue.wait(1, kNoTimeout).empty());  // nothing outstanding: returns at once

  CHECK_THROWS(rig.queue.add_file("/nowhere/at/all"), std::system_error);
  CHECK_THROWS(rig.queue.add_file("/tmp"), std::system_error);
  try {
    rig.queue.add_file("/nowhere/at/all", mode);
  } catch (const std::system_error& error) {
    CHECK(error.code().value() == ENOENT);
    CHECK(std::string(error.what()).find("/nowhere/at/all") != std::string::npos);
  }
  CHECK_THROWS(rig.queue.file_is_direct(1), std::out_of_range);
  CHECK_THROWS(rig.queue.add_buffer(nullptr), std::invalid_argument);
  CHECK_THROWS(rig.queue.set_throttle(-1), std::invalid_argument);
  rig.queue.close();
  rig.queue.close();
  CHECK_THROWS(rig.queue.submit({{good}}), std::invalid_argument);
  CHECK_THROWS(ReadQueue({.depth = 0}), std::invalid_argument);
  CHECK_THROWS(ReadQueue({.chunk_bytes = 5000}), std::invalid_argument);
  CHECK_THROWS(ReadQueue({.chunk_bytes = std::size_t{2} << 30}), std::invalid_argument);
  CHECK_THROWS(ReadQueue({.background_depth = 0}), std::invalid_argument);
}

void demand_overtakes_background(BackendKind backend, FileMode mode) {
  constexpr std::uint64_t kEach = 6, kBytes = 1 << 16;
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 1);
  rig.open(file);
  rig.queue.set_throttle(2 << 20);    // one request every 31 ms
  std::vector<ReadRequest> requests;  // background first, in one batch: all are queued at once
  for (std::uint64_t i = 0; i < 2 * kEach; ++i) {
    const auto priority = i < kEach ? Priority::kBackground : Priority::kDemand;
    requests.push_back({i, 0, i * kBytes, kBytes, 0, i * kBytes, priority});
  }
  rig.queue.submit(requests);
  const std::vector<Completion> first = rig.queue.wait(kEach + 1, kNoTimeout);
  for (std::uint64_t i = 0; i < kEach; ++i) CHECK(first[i].tag == kEach + i);
  CHECK(first[kEach].tag == 0);

  rig.queue.set_throttle(1 << 16);
  const std::vector<std::uint64_t> dropped = rig.queue.cancel_background();
  CHECK(!dropped.empty() && dropped.back() == kEach - 1);
  std::size_t completed = first.size();
  for (const Completion& done : rig.wait_all()) completed += done.error == 0;
  CHECK(completed + dropped.size() == 2 * kEach);
  CHECK(rig.queue.outstanding() == 0 && rig.queue.cancel_background().empty());
}

void throttle_holds_the_rate(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode);
  rig.open(file);
  rig.queue.set_throttle(8 << 20);
  const auto start = steady_clock::now();
  rig.queue.submit({{{1, 0, 0, 2 << 20, 0, 0}}});
  CHECK(rig.queue.wait(1, milliseconds(20)).empty());
  CHECK(!rig.queue.wait_ready(1, milliseconds(0)));
  CHECK(rig.queue.outstanding() == 1);
  const std::vector<Completion> done = rig.queue.wait(1, kNoTimeout);
  const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  CHECK(done.size() == 1 && done[0].error == 0);
  CHECK(seconds > 0.2 && seconds < 2.0);  // 0.25 on a quiet machine
}

void many_threads_may_share_a_queue(BackendKind backend, FileMode mode) {
  constexpr std::uint64_t kThreads = 6, kRounds = 25, kPerRound = 4, kBytes = 3 << 14;
  constexpr std::uint64_t kRequests = kThreads * kRounds * kPerRound;
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 16, 1 << 14, kRequests * kBytes);
  rig.open(file);
  const auto offset_of = [](std::uint64_t tag) { return tag * 4096 % (2 << 20); };
  std::atomic<std::uint64_t> collected{0};
  const auto work = [&](std::uint64_t thread) {
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      std::vector<ReadRequest> requests;
      for (std::uint64_t i = 0; i < kPerRound; ++i) {
        // Each its own destination: a thread collects others' completions, so its own requests
        // may still be under way in the next round.
        const std::uint64_t tag = (thread * kRounds + round) * kPerRound + i;
        const auto priority = i == 0 ? Priority::kBackground : Priority::kDemand;
        requests.push_back({tag, 0, offset_of(tag), kBytes, 0, tag * kBytes, priority});
      }
      rig.queue.submit(requests);
      for (const Completion& done : rig.queue.wait(1, kNoTimeout)) {
        CHECK(done.error == 0 && done.bytes == kBytes);
        ++collected;
      }
      rig.queue.stats();
      if (round % 8 == 0) rig.queue.drain();
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  for (const Completion& done : rig.wait_all()) collected += done.error == 0;
  CHECK(collected == kRequests);
  for (std::uint64_t tag = 0; tag < kRequests; ++tag) {
    CHECK(std::memcmp(rig.buffer->data() + tag * kBytes, file.at(offset_of(tag)), kBytes) == 0);
  }
}

void destruction_waits_for_reads_in_flight(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  for (int round = 0; round < 20; ++round) {
    Rig rig(backend, mode, 8, 1 << 18);
    rig.open(file);
    std::vector<ReadRequest> requests;
    for (std::uint64_t i = 0; i < 8; ++i) requests.push_back({i, 0, i << 18, 1 << 20, 0, i << 20});
    rig.queue.submit(requests);
    if (round % 2 == 0) rig.queue.wait(1, kNoTimeout);
    rig.buffer.reset();  // the queue holds the last reference, the drive still writes there
  }
}

void close_wakes_waiters(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode);
  rig.open(file);
  rig.queue.set_throttle(1 << 20);
  rig.queue.submit({{{1, 0, 0, 3 << 20, 0, 0}, {2, 0, 0, 3 << 20, 0, 4 << 20}}});
  std::vector<Completion> done;
  std::thread waiter([&] { done = rig.queue.wait(2, kNoTimeout); });
  std::this_thread::sleep_for(milliseconds(30));
  rig.queue.close();
  waiter.join();
  // The second was never issued; the first is cut short, or dropped between two of its chunks.
  CHECK(done.size() <= 1);
  if (done.size() == 1) CHECK(done[0].tag == 1 && done[0].error == ECANCELED);
}

// Runs of random neighbours: requests that ascend, and how many belong to each run.
struct Runs {
  std::vector<ReadRequest> requests;
  std::vector<std::size_t> sizes;
  std::uint64_t bytes = 0;  // from end to end, gaps included
};

Runs random_runs(std::mt19937_64& random, std::uint64_t step, std::uint64_t longest,
                 std::size_t count) {
  Runs runs;
  for (std::size_t run = 0; run < count; ++run) {
    std::uint64_t at = random() % (1 << 20) / step * step;
    const std::uint64_t begin = at, first = runs.requests.size();
    for (std::uint64_t part = random() % 6 + 1; part > 0; --part) {
      const std::uint64_t length = (random() % 40000 / step + 1) * step;
      const std::uint64_t gap = random() % 2 == 0 ? 0 : random() % 30000 / step * step;
      if (at + gap + length - begin > longest) break;
      at += runs.requests.size() > first ? gap : 0;
      runs.requests.push_back({runs.requests.size(), 0, at, length, 0, 0});
      at += length;
    }
    runs.sizes.push_back(runs.requests.size() - first);
    runs.bytes += at - begin;
  }
  // Destinations in another order than in the file, with a page between that is nobody's.
  std::vector<std::size_t> order(runs.requests.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (random() % 4 != 0) std::shuffle(order.begin(), order.end(), random);
  std::uint64_t room = 4096;
  for (const std::size_t i : order) {
    runs.requests[i].buffer_offset = room;
    room += runs.requests[i].length + 4096;
    if (step == 4096) room = (room + 4095) / 4096 * 4096;
  }
  return runs;
}

void runs_are_one_read_each_and_match_the_file(BackendKind backend, FileMode mode, bool pin) {
  const TemporaryFile file(kFileBytes);
  constexpr std::size_t kChunk = 1 << 18;
  for (int round = 0; round < 12; ++round) {
    std::mt19937_64 random(round);
    Rig rig(backend, mode, round % 3 + 1, kChunk, 8 << 20, pin);
    rig.open(file);
    const std::uint64_t step = rig.queue.file_is_direct(0) ? 4096 : 1;
    const Runs runs = random_runs(random, step, kChunk, 20);
    std::memset(rig.buffer->data(), 0xA5, rig.buffer->size());
    std::vector<std::byte> expected(rig.buffer->data(), rig.buffer->data() + rig.buffer->size());
    for (const ReadRequest& request : runs.requests) {
      std::memcpy(expected.data() + request.buffer_offset, file.at(request.offset), request.length);
    }
    rig.queue.submit(runs.requests, runs.sizes);
    std::set<std::uint64_t> seen;
    for (const Completion& done : rig.wait_all()) {
      CHECK(done.error == 0 && done.bytes == runs.requests[done.tag].length);
      CHECK(seen.insert(done.tag).second);
    }
    CHECK(seen.size() == runs.requests.size());
    CHECK(std::memcmp(rig.buffer->data(), expected.data(), expected.size()) == 0);
    CHECK(rig.queue.stats().count == runs.sizes.size());
    CHECK(rig.queue.stats().bytes == runs.bytes);
  }
}

void a_run_past_the_end_fails_for_those_that_lie_there(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 32, 1 << 20);
  rig.open(file);
  const std::uint64_t end = kWholeBlocks;  // and 1234 bytes more
  rig.queue.submit({{{1, 0, end - 20480, 8192, 0, 0},
                     {2, 0, end - 8192, 12288, 0, 16384},
                     {3, 0, end + 4096, 4096, 0, 65536},
                     {4, 0, end + 16384, 4096, 0, 131072}}},
                   {{4}});
  std::set<std::uint64_t> seen;
  for (const Completion& done : rig.wait_all()) {
    const std::uint64_t bytes = done.tag == 1 ? 8192 : done.tag == 2 ? 8192 + 1234 : 0;
    CHECK(done.error == (done.tag == 1 ? 0 : kEndOfFile) && done.bytes == bytes);
    seen.insert(done.tag);
  }
  CHECK(seen.size() == 4 && rig.queue.outstanding() == 0);
  CHECK(std::memcmp(rig.buffer->data(), file.at(end - 20480), 8192) == 0);
  CHECK(std::memcmp(rig.buffer->data() + 16384, file.at(end - 8192), 8192 + 1234) == 0);
}

void an_error_in_a_run_is_that_of_its_request_alone(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  for (const std::size_t bad : {0, 1, 2}) {
    Rig rig(backend, mode, 32, 1 << 20, 8 << 20, false);
    rig.open(file);
    std::vector<ReadRequest> requests;
    for (std::uint64_t i = 0; i < 3; ++i) {
      requests.push_back({i, 0, i * 20480, 16384, 0, (3 - i) << 20});
    }
    std::byte* refused = rig.buffer->data() + requests[bad].buffer_offset;
    CHECK(mprotect(refused, 16384, PROT_NONE) == 0);
    rig.queue.submit(requests, {{3}});
    std::set<std::uint64_t> seen;
    for (const Completion& done : rig.wait_all()) {
      CHECK(done.error == (done.tag == bad ? EFAULT : 0));
      CHECK(seen.insert(done.tag).second);
      if (done.error != 0) continue;
      CHECK(done.bytes == 16384);
      CHECK(std::memcmp(rig.buffer->data() + requests[done.tag].buffer_offset,
                        file.at(requests[done.tag].offset), 16384) == 0);
    }
    CHECK(seen.size() == 3 && rig.queue.outstanding() == 0);
    CHECK(mprotect(refused, 16384, PROT_READ | PROT_WRITE) == 0);
  }
}

void invalid_runs_are_refused_as_a_batch(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 32, 1 << 20);
  rig.open(file);
  rig.open(file);
  const auto refused = [&](ReadRequest second, std::vector<std::size_t> sizes) {
    const ReadRequest first{1, 0, 1 << 20, 8192, 0, 0};
    CHECK_THROWS(rig.queue.submit({{first, second}}, sizes), std::invalid_argument);
  };
  const std::uint64_t end = (1 << 20) + 8192;
  const ReadRequest good{2, 0, end, 8192, 0, 8192};
  refused(good, {1});
  refused(good, {3});
  refused(good, {2, 1});
  refused(good, {0, 2});
  refused(good, {2, 0});
  refused(good, {std::numeric_limits<std::size_t>::max(), 3});
  refused({2, 1, end, 8192, 0, 8192}, {2});                         // another file
  refused({2, 0, end - 4096, 8192, 0, 8192}, {2});                  // overlap
  refused({2, 0, 0, 8192, 0, 8192}, {2});                           // descends
  refused({2, 0, end + kLargestGap + 4096, 4096, 0, 8192}, {2});    // gap
  refused({2, 0, end, 1 << 20, 0, 8192}, {2});                      // longer than a chunk
  refused({2, 0, end, 8192, 0, 8192, Priority::kBackground}, {2});  // another priority
  const std::vector<ReadRequest> many(kMostInRun + 1, good);
  CHECK_THROWS(rig.queue.submit(many, {{kMostInRun + 1}}), std::invalid_argument);
  CHECK_THROWS(rig.queue.submit({}, {{1}}), std::invalid_argument);
  CHECK(rig.queue.outstanding() == 0);
}

void background_runs_wait_and_are_dropped_whole(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 1);
  rig.open(file);
  rig.queue.set_throttle(1 << 20);  // 64 KiB: every 62 ms
  std::vector<ReadRequest> requests;
  for (std::uint64_t i = 0; i < 6; ++i) {
    const auto priority = i < 4 ? Priority::kBackground : Priority::kDemand;
    requests.push_back({i, 0, i << 15, 1 << 15, 0, i << 15, priority});
  }
  rig.queue.submit(requests, {{2, 2, 2}});
  const std::vector<Completion> first = rig.queue.wait(1, kNoTimeout);
  CHECK(first.size() == 2 && first[0].tag == 4 && first[1].tag == 5);
  const std::vector<std::uint64_t> dropped = rig.queue.cancel_background();
  CHECK(dropped.size() == 2 || dropped.size() == 4);
  CHECK(dropped.back() == 3 && dropped[dropped.size() - 2] == 2);
  const std::vector<Completion> rest = rig.wait_all();
  CHECK(rest.size() + dropped.size() == 4 && rig.queue.outstanding() == 0);
}

void throttle_counts_what_runs_throw_away(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 32, 1 << 20);
  rig.open(file);
  rig.queue.set_throttle(8 << 20);
  std::vector<ReadRequest> requests;  // 8 runs of 256 KiB, 8 KiB of each wanted
  for (std::uint64_t i = 0; i < 8; ++i) {
    requests.push_back({2 * i, 0, i << 18, 4096, 0, i << 13});
    requests.push_back({2 * i + 1, 0, ((i + 1) << 18) - 4096, 4096, 0, (i << 13) + 4096});
  }
  const auto start = steady_clock::now();
  rig.queue.submit(requests, std::vector<std::size_t>(8, 2));
  CHECK(rig.wait_all().size() == 16);
  const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  CHECK(rig.queue.stats().bytes == 2 << 20);
  CHECK(seconds > 0.18 && seconds < 2.0);  // 0.22 on a quiet machine: the last is not waited for
}

void many_threads_may_submit_runs(BackendKind backend, FileMode mode) {
  constexpr std::uint64_t kThreads = 4, kRounds = 20, kParts = 6, kBytes = 8192;
  constexpr std::uint64_t kRequests = kThreads * kRounds * kParts;
  const TemporaryFile file(kFileBytes);
  Rig rig(backend, mode, 8, 1 << 18, kRequests * kBytes);
  rig.open(file);
  const auto offset_of = [](std::uint64_t tag) { return tag * 12288 % (2 << 20) / 4096 * 4096; };
  std::atomic<std::uint64_t> collected{0};
  const auto work = [&](std::uint64_t thread) {
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      std::vector<ReadRequest> requests;
      for (std::uint64_t i = 0; i < kParts; ++i) {
        const std::uint64_t tag = (thread * kRounds + round) * kParts + i;
        const std::uint64_t offset = offset_of((thread * kRounds + round) * kParts) + i * 12288;
        requests.push_back({tag, 0, offset, kBytes, 0, tag * kBytes});
      }
      rig.queue.submit(requests, {{4, 2}});
      for (const Completion& done : rig.queue.wait(1, kNoTimeout)) collected += done.error == 0;
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  for (const Completion& done : rig.wait_all()) collected += done.error == 0;
  CHECK(collected == kRequests && rig.queue.stats().count == kThreads * kRounds * 2);
  for (std::uint64_t tag = 0; tag < kRequests; ++tag) {
    const std::uint64_t offset = offset_of(tag / kParts * kParts) + tag % kParts * 12288;
    CHECK(std::memcmp(rig.buffer->data() + tag * kBytes, file.at(offset), kBytes) == 0);
  }
}

void closing_drops_runs_or_waits_for_them(BackendKind backend, FileMode mode) {
  const TemporaryFile file(kFileBytes);
  for (int round = 0; round < 20; ++round) {
    Rig rig(backend, mode, 2, 1 << 18);
    rig.open(file);
    std::vector<ReadRequest> requests;
    for (std::uint64_t i = 0; i < 24; ++i) requests.push_back({i, 0, i << 16, 49152, 0, i << 16});
    rig.queue.submit(requests, std::vector<std::size_t>(8, 3));
    if (round % 2 == 0) rig.queue.wait(1, kNoTimeout);
    rig.queue.close();
    const std::vector<Completion> done = rig.wait_all();
    CHECK(done.size() % 3 == 0 && rig.queue.outstanding() == 0);
    for (const Completion& each : done) CHECK(each.error == 0);
  }
}

void test_backend(BackendKind backend, FileMode mode) {
  RUN(reads_match_the_file(backend, mode, true));
  if (backend == BackendKind::kIoUring) RUN(reads_match_the_file(backend, mode, false));
  RUN(end_of_file_is_an_error_and_not_a_hang(backend, mode));
  RUN(a_file_truncated_while_queued_is_an_error(backend, mode));
  RUN(invalid_requests_are_refused_as_a_batch(backend, mode));
  RUN(demand_overtakes_background(backend, mode));
  RUN(throttle_holds_the_rate(backend, mode));
  RUN(many_threads_may_share_a_queue(backend, mode));
  RUN(destruction_waits_for_reads_in_flight(backend, mode));
  RUN(close_wakes_waiters(backend, mode));
  RUN(runs_are_one_read_each_and_match_the_file(backend, mode, true));
  RUN(runs_are_one_read_each_and_match_the_file(backend, mode, false));
  RUN(a_run_past_the_end_fails_for_those_that_lie_there(backend, mode));
  RUN(an_error_in_a_run_is_that_of_its_request_alone(backend, mode));
  RUN(invalid_runs_are_refused_as_a_batch(backend, mode));
  RUN(background_runs_wait_and_are_dropped_whole(backend, mode));
  RUN(throttle_counts_what_runs_throw_away(backend, mode));
  RUN(many_threads_may_submit_runs(backend, mode));
  RUN(closing_drops_runs_or_waits_for_them(backend, mode));
}

// Whether this directory's file system and kernel can do it; a container may forbid either.
bool available(BackendKind backend, FileMode mode) {
  const TemporaryFile file(4096);
  try {
    ReadQueue({.backend = backend}).add_file(file.path(), mode);
    return true;
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "not available: %s\n", error.what());
    return false;
  }
}

}  // namespace
}  // namespace headgate

int main() {
  using namespace headgate;
  RUN(crc32c_matches_published_vectors());
  RUN(crc32c_matches_the_bitwise_definition_and_chains());
  RUN(aligned_buffers_are_aligned_and_bounded());
  RUN(histogram_buckets_cover_every_latency());
  for (BackendKind backend : {BackendKind::kPread, BackendKind::kIoUring, BackendKind::kAuto}) {
    for (FileMode mode : {FileMode::kDirect, FileMode::kBuffered, FileMode::kAuto}) {
      if (!available(backend, mode)) continue;
      std::fprintf(stderr, "-- backend %d, mode %d\n", static_cast<int>(backend),
                   static_cast<int>(mode));
      test_backend(backend, mode);
    }
  }
  std::fprintf(stderr, "all claims hold\n");
  return 0;
}
