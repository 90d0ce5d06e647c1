#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

int open_checked(const std::filesystem::path& path, int flags, const char* verb, unsigned mode = 0666) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (descriptor < 0) {
    fail_errno(fmt::format("{} {}", verb, path.string()));
  }
  return descriptor;
}

// Whether writes had gone past the system's memory until now.
bool stop_bypassing(int descriptor) {
  const int flags = ::fcntl(descriptor, F_GETFL);
  return (flags & O_DIRECT) != 0 && ::fcntl(descriptor, F_SETFL, flags & ~O_DIRECT) == 0;
}

}  // namespace

File File::open_to_read(const std::filesystem::path& path) { return {open_checked(path, O_RDONLY, "open"), path}; }
File File::create(const std::filesystem::path& path, unsigned mode) {
  return {open_checked(path, O_WRONLY | O_CREAT | O_TRUNC, "create", mode), path};
}
File File::open_or_create(const std::filesystem::path& path) {
  return {open_checked(path, O_RDWR | O_CREAT, "open"), path};
}

File::File(int descriptor, std::filesystem::path path) : descriptor_(descriptor), path_(std::move(path)) {}
File::File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}
File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}
File::~File() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

std::uint64_t File::size() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0) {
    fail_errno(fmt::format("stat {}", path_.string()));
  }
  return static_cast<std::uint64_t>(info.st_size);
}

std::size_t File::read_some(std::uint64_t offset, std::span<std::byte> bytes) const {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::pread(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      fail_errno(fmt::format("read {}", path_.string()));
    }
    if (n == 0) {
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  return done;
}

void File::read_exactly(std::uint64_t offset, std::span<std::byte> bytes) const {
  const std::size_t n = read_some(offset, bytes);
  if (n != bytes.size()) {
    fail(ErrorCode::kCorrupt, "read {}: the file ends at byte {}, expected {} bytes", path_.string(), offset + n,
         offset + bytes.size());
  }
}

void File::write(std::uint64_t offset, std::span<const std::byte> bytes) const {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && errno == EINVAL && stop_bypassing(descriptor_)) {
      continue;
    }
    if (n < 0) {
      fail_errno(fmt::format("write {}", path_.string()));
    }
    done += static_cast<std::size_t>(n);
  }
}

void File::bypass_cache() const {
  const int flags = ::fcntl(descriptor_, F_GETFL);
  (void)::fcntl(descriptor_, F_SETFL, flags | O_DIRECT);  // refused by file systems that cannot
}

void File::start_writeback(std::uint64_t offset, std::uint64_t size_bytes) const {
  // File systems that cannot do it say so; sync() is what counts.
  (void)::sync_file_range(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size_bytes),
                          SYNC_FILE_RANGE_WRITE);
}

void File::truncate(std::uint64_t size_bytes) const {
  if (::ftruncate(descriptor_, static_cast<off_t>(size_bytes)) != 0) {
    fail_errno(fmt::format("truncate {}", path_.string()));
  }
}

bool File::try_lock() const { return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

void File::sync() const {
  if (::fsync(descriptor_) != 0) {
    fail_errno(fmt::format("sync {}", path_.string()));
  }
}

std::string read_file(const std::filesystem::path& path) {
  const File file = File::open_to_read(path);
  if (!std::filesystem::is_regular_file(path)) {
    fail(ErrorCode::kIo, "read {}: not a regular file", path.string());
  }
  std::string contents(file.size(), '\0');
  contents.resize(file.read_some(0, std::as_writable_bytes(std::span(contents))));
  return contents;
}

std::filesystem::path place_of_file(std::string_view option, const std::filesystem::path& path) {
  constexpr int kMostLinks = 40;  // as Linux follows
  std::error_code error;
  std::filesystem::path place = path;
  for (int i = 0; i < kMostLinks && std::filesystem::is_symlink(place, error); ++i) {
    place = place.parent_path() / std::filesystem::read_symlink(place, error);
  }
  const std::filesystem::file_status status = std::filesystem::status(place, error);
  require(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status),
          "{}: {} is {}, expected the name of a file", option, path.string(),
          std::filesystem::is_directory(status) ? "a folder" : "there and no file");
  return place;
}

void write_file_atomic(const std::filesystem::path& path, std::string_view contents, Readers readers) {
  std::filesystem::path partial = path;
  partial += ".partial";
  {
    if (readers == Readers::kOwner) {
      ::unlink(partial.c_str());  // an old one may have other rights
    }
    const File file = File::create(partial, readers == Readers::kOwner ? 0600 : 0666);
    file.write(0, std::as_bytes(std::span(contents)));
    file.sync();
  }
  if (::rename(partial.c_str(), path.c_str()) != 0) {
    fail_errno(fmt::format("rename {} to {}", partial.string(), path.string()));
  }
  sync_folder(path.parent_path());
}

void sync_folder(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder.empty() ? "." : folder;
  const int descriptor = open_checked(path, O_RDONLY | O_DIRECTORY, "open");
  const int result = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  if (result != 0 && error != EINVAL) {  // EINVAL: the file system has no folders to sync
    errno = error;
    fail_errno(fmt::format("sync {}", path.string()));
  }
}

}  // namespace lockstep
