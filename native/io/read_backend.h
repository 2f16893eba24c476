#pragma once

#include <memory>

#include "io/read_scheduler.h"

namespace headgate {

// Carries out what a ReadScheduler hands out, on its own threads.
//
// The destructor expects scheduler.stop() to have been called, and returns when no read is in
// flight. The scheduler must outlive the backend.
class ReadBackend {
 public:
  virtual ~ReadBackend() = default;
  virtual const char* name() const = 0;
  virtual void wake() = 0;  // work, files, buffers or the throttle have changed, or stop()
};

// Null when the system has no io_uring or forbids it; then *error is an errno.
std::unique_ptr<ReadBackend> make_uring_backend(ReadScheduler& scheduler, unsigned depth,
                                                bool register_buffers, int* error);

// Throws std::system_error when no thread can be started.
std::unique_ptr<ReadBackend> make_pread_backend(ReadScheduler& scheduler, unsigned threads);

}  // namespace headgate
