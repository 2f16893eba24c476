#pragma once

#include <string>

#include "io/read_queue.h"

namespace headgate {

// A read-only descriptor and whether it bypasses the page cache. Closes itself; movable.
class OpenFile {
 public:
  // Throws std::system_error with the path in its message. kAuto falls back to buffered where
  // direct reading is refused, at open or by a trial read.
  OpenFile(const std::string& path, FileMode mode);
  ~OpenFile();
  OpenFile(OpenFile&& other) noexcept : fd_(other.fd_), direct_(other.direct_) { other.fd_ = -1; }
  OpenFile& operator=(OpenFile&&) = delete;

  int fd() const { return fd_; }
  bool direct() const { return direct_; }

 private:
  int fd_ = -1;
  bool direct_ = false;
};

}  // namespace headgate
