#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include "io/aligned_buffer.h"
#include "io/crc32c.h"
#include "io/read_queue.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headgate;

namespace {

// Python holds a shared pointer rather than the buffer: arrays and queues keep the memory alive
// without a reference to a Python object, hence without the GIL.
struct SharedBuffer {
  std::shared_ptr<AlignedBuffer> memory;
};

nb::object buffer_array(const SharedBuffer& buffer, std::size_t offset,
                        std::optional<std::size_t> nbytes) {
  const std::size_t size = buffer.memory->size();
  if (offset > size) throw nb::index_error("offset is past the end of the buffer");
  const std::size_t length = nbytes.value_or(size - offset);
  if (length > size - offset) throw nb::index_error("array leaves the buffer");
  auto keep = std::make_unique<std::shared_ptr<AlignedBuffer>>(buffer.memory);
  nb::capsule owner(keep.get(), [](void* pointer) noexcept {
    delete static_cast<std::shared_ptr<AlignedBuffer>*>(pointer);
  });
  keep.release();
  auto* start = reinterpret_cast<std::uint8_t*>(buffer.memory->data() + offset);
  return nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(start, {length}, owner));
}

BackendKind parse_backend(const std::string& name) {
  if (name == "auto") return BackendKind::kAuto;
  if (name == "io_uring") return BackendKind::kIoUring;
  if (name == "pread") return BackendKind::kPread;
  throw nb::value_error("backend must be 'auto', 'io_uring' or 'pread'");
}

FileMode parse_mode(const std::string& name) {
  if (name == "auto") return FileMode::kAuto;
  if (name == "direct") return FileMode::kDirect;
  if (name == "buffered") return FileMode::kBuffered;
  throw nb::value_error("mode must be 'auto', 'direct' or 'buffered'");
}

int add_file(ReadQueue& queue, const std::string& path, const std::string& mode) {
  const FileMode parsed = parse_mode(mode);
  std::optional<int> error;
  {
    nb::gil_scoped_release release;  // opening may wait for the drive
    try {
      return queue.add_file(path, parsed);
    } catch (const std::system_error& refused) {
      error = refused.code().value();
    }
  }
  errno = *error;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
  throw nb::python_error();
}

// Signed where the core is unsigned, so that a negative number is a ValueError.
using RequestTuple =
    std::tuple<std::uint64_t, int, std::int64_t, std::int64_t, int, std::int64_t, int>;

void submit(ReadQueue& queue, const std::vector<RequestTuple>& tuples,
            const std::vector<std::int64_t>& sizes) {
  std::vector<ReadRequest> requests;
  requests.reserve(tuples.size());
  for (const auto& [tag, file, offset, length, buffer, buffer_offset, priority] : tuples) {
    if (offset < 0 || length < 0 || buffer_offset < 0) {
      throw nb::value_error("offsets and lengths must not be negative");
    }
    requests.push_back(
        {tag, file, static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(length), buffer,
         static_cast<std::uint64_t>(buffer_offset), static_cast<Priority>(priority)});
  }
  // A negative size becomes one that exceeds the requests, and is refused.
  const std::vector<std::size_t> runs(sizes.begin(), sizes.end());
  nb::gil_scoped_release release;
  queue.submit(requests, runs);
}

// Waits in slices, so that Ctrl-C works; completions are collected only once the wait is over, so
// that an interrupt loses none.
nb::list wait(ReadQueue& queue, std::size_t min_completions, double timeout_s) {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  constexpr std::chrono::milliseconds kSlice(100);
  constexpr double kForever = 1e9;
  if (std::isnan(timeout_s)) throw nb::value_error("timeout_s must be a number");
  const bool endless = timeout_s < 0 || timeout_s > kForever;
  const Clock::time_point deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(endless ? 0 : timeout_s));
  while (true) {
    std::chrono::nanoseconds slice = kSlice;
    if (!endless) {
      slice =
          std::clamp<std::chrono::nanoseconds>(deadline - Clock::now(), Clock::duration(0), slice);
    }
    bool ready;
    {
      nb::gil_scoped_release release;
      ready = queue.wait_ready(min_completions, slice);
    }
    if (ready || (!endless && Clock::now() >= deadline)) break;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
  nb::list out;
  for (const Completion& done : queue.wait(0, std::chrono::nanoseconds(0))) {
    out.append(nb::make_tuple(done.tag, done.error, done.bytes, done.latency_ns));
  }
  return out;
}

nb::dict stats(const ReadQueue& queue) {
  const ReadStats stats = queue.stats();
  nb::list lower, counts;
  for (std::size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
    lower.append(LatencyHistogram::lower_us(i));
    counts.append(stats.latency.counts[i]);
  }
  nb::dict out;
  out["count"] = stats.count;
  out["bytes"] = stats.bytes;
  out["max_depth"] = stats.max_depth;
  out["latency_lower_us"] = lower;
  out["latency_counts"] = counts;
  return out;
}

std::uint32_t checksum(nb::handle object, std::uint32_t seed) {
  Py_buffer view;
  // PyBUF_SIMPLE: whatever the item type, contiguous bytes or a BufferError.
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  std::uint32_t sum;
  {
    nb::gil_scoped_release release;
    sum = crc32c(view.buf, static_cast<std::size_t>(view.len), seed);
  }
  PyBuffer_Release(&view);
  return sum;
}

void translate_system_error(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::system_error& error) {
    nb::object arguments = nb::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

void bind_queue(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  const ReadQueueOptions defaults;
  nb::class_<ReadQueue>(m, "ReadQueue",
                        "Reads from files into AlignedBuffers on threads of its own, completed in "
                        "the order that the drive finishes. Any thread may call any method.")
      .def(
          "__init__",
          [](ReadQueue* self, const std::string& backend, unsigned depth, std::size_t chunk_bytes,
             unsigned threads, unsigned background_depth, bool register_buffers) {
            const BackendKind kind = parse_backend(backend);
            new (self)
                ReadQueue({kind, depth, chunk_bytes, threads, background_depth, register_buffers});
          },
          "backend"_a = "auto", "depth"_a = defaults.depth, "chunk_bytes"_a = defaults.chunk_bytes,
          "threads"_a = defaults.threads, "background_depth"_a = defaults.background_depth,
          "register_buffers"_a = defaults.register_buffers,
          "threads is the size of the pread pool, 0 for min(depth, 16). Raises ValueError, and "
          "OSError when the backend asked for is not available.")
      .def_prop_ro("backend", &ReadQueue::backend, "The one in use: 'io_uring' or 'pread'.")
      .def("add_file", &add_file, "path"_a, "mode"_a = "auto",
           "Open a file ('auto', 'direct' or 'buffered') and return its index. Raises OSError.")
      .def("file_is_direct", &ReadQueue::file_is_direct, "file"_a,
           "Whether reads bypass the page cache and must be aligned to 4096.")
      .def(
          "add_buffer",
          [](ReadQueue& queue, const SharedBuffer& buffer) {
            return queue.add_buffer(buffer.memory);
          },
          "buffer"_a, "Register a destination, kept alive by the queue; return its index.")
      .def("submit", &submit, "requests"_a, "runs"_a = std::vector<std::int64_t>(),
           "Queue (tag, file, offset, length, buffer, buffer_offset, priority) tuples, all or "
           "none. Priority 0 is demand, 1 background. runs, sizes of groups of successive "
           "requests, has each group read as one: ascending in one file, chunk_bytes at most "
           "from end to end, gaps of 256 KiB at most. Raises ValueError or IndexError.")
      .def("wait", &wait, "min_completions"_a = 1, "timeout_s"_a = -1.0,
           "Return (tag, error, bytes, latency_ns) of all that is complete, once there are "
           "min_completions, or no more outstanding, or at the timeout (negative: none). "
           "error is 0, an errno, or -1 for an end of file before the length.")
      .def("cancel_background", &ReadQueue::cancel_background, Release(),
           "Drop the background requests not begun; return their tags.")
      .def("drain", &ReadQueue::drain, Release(), "Wait until every request is complete.")
      .def_prop_ro("outstanding", &ReadQueue::outstanding,
                   "Requests submitted and not yet returned by wait().")
      .def("stats", &stats,
           "Chunk reads so far: count, bytes, max_depth, latency_counts; bucket i of the last "
           "starts at latency_lower_us[i] microseconds.")
      .def("reset_stats", &ReadQueue::reset_stats)
      .def("set_throttle", &ReadQueue::set_throttle, "bytes_per_second"_a,
           "Limit the rate of issue; 0 for no limit.")
      .def("close", &ReadQueue::close, Release(),
           "Drop what is not issued and wait for the reads in flight. May be repeated.");
}

}  // namespace

void bind_io(nb::module_& m) {
  nb::register_exception_translator(translate_system_error);
  nb::class_<SharedBuffer>(m, "AlignedBuffer",
                           "Page-aligned memory that drives read into; zero at first.")
      .def(
          "__init__",
          [](SharedBuffer* self, std::size_t nbytes, bool huge_pages) {
            new (self) SharedBuffer{std::make_shared<AlignedBuffer>(nbytes, huge_pages)};
          },
          "nbytes"_a, "huge_pages"_a = false, "Raises MemoryError, and ValueError for no bytes.")
      .def_prop_ro("nbytes", [](const SharedBuffer& self) { return self.memory->size(); })
      .def_prop_ro("address",
                   [](const SharedBuffer& self) {
                     return reinterpret_cast<std::uintptr_t>(self.memory->data());
                   })
      .def("array", &buffer_array, "offset"_a = 0, "nbytes"_a = nb::none(),
           "A writable uint8 view of [offset, offset + nbytes) that keeps the memory alive. "
           "Raises IndexError.");
  bind_queue(m);
  m.def("crc32c", &checksum, "data"_a, "seed"_a = 0,
        "CRC-32C of a C-contiguous buffer; `seed` is the checksum of what came before.");
}
