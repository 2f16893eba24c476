// Claims about native/io: checksums, and the read queue on both backends.
#include <unistd.h>

#include <algorithm>
#include <atomic>
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
