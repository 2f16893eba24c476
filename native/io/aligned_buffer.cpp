#include "io/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>

namespace headgate {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t page_size() {
  const long reported = sysconf(_SC_PAGESIZE);
  return std::max(kDirectAlignment, reported > 0 ? static_cast<std::size_t>(reported) : 0);
}

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t size, bool huge_pages) : size_(size) {
  if (size == 0) throw std::invalid_argument("AlignedBuffer: size must be positive");
  const std::size_t page = page_size();
  const std::size_t alignment = huge_pages ? std::max(page, kHugePage) : page;
  constexpr std::size_t kLargest = std::numeric_limits<std::ptrdiff_t>::max();
  if (size > kLargest - 2 * alignment) throw std::bad_alloc();

  // mmap aligns to pages only, so a larger alignment is cut out of a larger mapping.
  mapped_ = round_up(size, alignment);
  const std::size_t slack = alignment - page;
  void* raw =
      mmap(nullptr, mapped_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();

  auto* base = static_cast<std::byte*>(raw);
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  const std::size_t head = round_up(address, alignment) - address;
  if (head > 0) munmap(base, head);
  if (slack > head) munmap(base + head + mapped_, slack - head);
  data_ = base + head;
#ifdef MADV_HUGEPAGE
  if (huge_pages) madvise(data_, mapped_, MADV_HUGEPAGE);
#endif
}

AlignedBuffer::~AlignedBuffer() { munmap(data_, mapped_); }

}  // namespace headgate
