#include "io/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace headgate {
namespace {

int open_retrying(const std::string& path, int flags) {
  int fd;
  do {
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// Returns a descriptor that bypasses the page cache, or -1 with errno set.
int open_direct(const std::string& path) {
#ifdef O_DIRECT
  // Some file systems accept the flag and refuse the read (network, FUSE, or blocks over 4 KiB).
  const AlignedBuffer trial(kDirectAlignment);
  const int fd = open_retrying(path, O_DIRECT);
  if (fd < 0) return -1;
  ssize_t got;
  do {
    got = pread(fd, trial.data(), trial.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got >= 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
#elif defined(F_NOCACHE)
  const int fd = open_retrying(path, 0);
  if (fd >= 0) fcntl(fd, F_NOCACHE, 1);
  return fd;
#else
  (void)path;
  errno = EINVAL;
  return -1;
#endif
}

}  // namespace

OpenFile::OpenFile(const std::string& path, FileMode mode) {
  if (mode != FileMode::kBuffered) {
    fd_ = open_direct(path);
    direct_ = fd_ >= 0;
  }
  const bool refused = errno == EINVAL || errno == EOPNOTSUPP;
  if (mode == FileMode::kBuffered || (mode == FileMode::kAuto && fd_ < 0 && refused)) {
    fd_ = open_retrying(path, 0);
  }
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), path);

  struct stat info;
  const int error = fstat(fd_, &info) != 0 ? errno : S_ISDIR(info.st_mode) ? EISDIR : 0;
  if (error != 0) {
    close(fd_);
    throw std::system_error(error, std::generic_category(), path);
  }
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace headgate
