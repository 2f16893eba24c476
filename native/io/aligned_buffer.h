#pragma once

#include <cstddef>

namespace headgate {

// What O_DIRECT asks of offsets, lengths and destinations on every drive we know of.
inline constexpr std::size_t kDirectAlignment = 4096;

// Page-aligned anonymous memory that drives can read into without a bounce copy.
//
// Ownership: owns its mapping and unmaps it on destruction; share it through std::shared_ptr.
// Contents: zero at first. Pages are taken from the system on first touch.
// Thread-safety: the object is immutable; the bytes are the caller's to synchronise.
// Failure: the constructor throws std::bad_alloc when the size cannot be represented or the system
// refuses it, and std::invalid_argument for zero bytes.
class AlignedBuffer {
 public:
  // Aligned to kDirectAlignment at least, to 2 MiB when huge pages are asked for. Huge pages are a
  // hint: a system that refuses them gives ordinary pages.
  explicit AlignedBuffer(std::size_t size, bool huge_pages = false);
  ~AlignedBuffer();
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;    // as asked for
  std::size_t mapped_ = 0;  // whole pages, from data_ on
};

}  // namespace headgate
