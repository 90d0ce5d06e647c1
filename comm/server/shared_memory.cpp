#include "comm/server/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "comm/control/token.h"

namespace lockstep::server {
namespace {

// What /proc shows of such a memory.
constexpr const char* kName = "lockstep";
// Before the data, for the secret: whole pages of any processor.
constexpr std::size_t kLead = std::size_t{64} << 10;
// From this size on huge pages are asked for, where the kernel gives them to shared memory.
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// More is not taken for a worker's memory.
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 42;
// Where memories lie that are read side by side: see comm/mpi/shared_window.cpp.
constexpr std::size_t kStride = 0x55000;
constexpr std::size_t kStrideModulus = std::size_t{1} << 20;

std::size_t mapped_bytes_of(std::uint64_t size_bytes) { return kLead + (size_bytes + kLead - 1) / kLead * kLead; }

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return value_; }
  [[nodiscard]] int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

// All at once, so that what cannot be had is known now and not when it is touched.
bool make_pages(void* mapping, int descriptor, std::size_t bytes) {
  int result = 0;
  do {
    result = ::madvise(mapping, bytes, MADV_POPULATE_WRITE);
  } while (result != 0 && errno == EINTR);
  if (result == 0 || errno != EINVAL) {
    return result == 0;
  }
  do {  // before Linux 5.14
    result = ::fallocate(descriptor, 0, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

// What is wrong with it, before it is opened: to open a device does something to it, and some files never open.
std::string problem_of(const std::string& path) {
  const std::string expected = fmt::format("/memfd:{} (deleted)", kName);
  std::array<char, 256> found{};
  const ssize_t length = ::readlink(path.c_str(), found.data(), found.size());
  if (length < 0) {
    return std::strerror(errno);
  }
  return std::string_view(found.data(), static_cast<std::size_t>(length)) == expected ? "" : "it is no such memory";
}

// What is wrong with it; empty for the memory that is described.
std::string problem_of(int descriptor, const SharedMemory& description) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    return "it is no memory";
  }
  const int seals = ::fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return "it could shrink";
  }
  if (status.st_size < static_cast<off_t>(mapped_bytes_of(description.bytes))) {
    return fmt::format("it has {} bytes, expected {}", status.st_size, mapped_bytes_of(description.bytes));
  }
  decltype(description.secret) found = {};
  const ssize_t read = ::pread(descriptor, found.data(), found.size(), 0);
  return read == static_cast<ssize_t>(found.size()) && found == description.secret ? "" : "it is another process's";
}

}  // namespace

std::shared_ptr<OwnMemory> OwnMemory::create(std::size_t size_bytes) {
  const std::size_t mapped_bytes = mapped_bytes_of(size_bytes);
  Descriptor descriptor(::memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (descriptor.get() < 0 || ::ftruncate(descriptor.get(), static_cast<off_t>(mapped_bytes)) != 0 ||
      ::fcntl(descriptor.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return nullptr;
  }
  void* const mapping = ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.get(), 0);
  if (mapping == MAP_FAILED) {
    return nullptr;
  }
  if (size_bytes >= kHugePage) {
    ::madvise(mapping, mapped_bytes, MADV_HUGEPAGE);
  }
  if (!make_pages(mapping, descriptor.get(), mapped_bytes)) {
    ::munmap(mapping, mapped_bytes);
    return nullptr;
  }
  return std::shared_ptr<OwnMemory>(new OwnMemory(descriptor.release(), mapping, mapped_bytes, size_bytes));
}

OwnMemory::OwnMemory(int descriptor, void* mapping, std::size_t mapped_bytes, std::size_t size_bytes)
    : descriptor_(descriptor),
      mapping_(mapping),
      mapped_bytes_(mapped_bytes),
      bytes_(static_cast<std::byte*>(mapping) + kLead, size_bytes) {
  static std::atomic<std::uint64_t> last_number{0};
  description_.number = ++last_number;
  description_.bytes = size_bytes;
  description_.process = static_cast<std::uint32_t>(::getpid());
  description_.descriptor = static_cast<std::uint32_t>(descriptor);
  const control::Digest random = control::random_challenge();
  static_assert(sizeof(random) == sizeof(description_.secret));
  std::memcpy(description_.secret.data(), random.data(), sizeof(random));
  std::memcpy(mapping_, random.data(), sizeof(random));
}

OwnMemory::~OwnMemory() {
  ::munmap(mapping_, mapped_bytes_);
  ::close(descriptor_);
}

OthersMemory::OthersMemory(const SharedMemory& description, std::size_t index) {
  if (description.bytes == 0 || description.bytes > kMaxBytes) {
    fail(ErrorCode::kIo, "shared memory of {} bytes, expected 1 to {}", description.bytes, kMaxBytes);
  }
  const std::string path = fmt::format("/proc/{}/fd/{}", description.process, description.descriptor);
  std::string problem = problem_of(path);
  const Descriptor descriptor(problem.empty() ? ::open(path.c_str(), O_RDWR | O_CLOEXEC) : -1);
  if (problem.empty()) {
    problem = descriptor.get() < 0 ? std::strerror(errno) : problem_of(descriptor.get(), description);
  }
  if (!problem.empty()) {
    fail(ErrorCode::kIo, "shared memory {}: {}", path, problem);
  }
  const std::size_t mapped_bytes = mapped_bytes_of(description.bytes);
  reserved_bytes_ = mapped_bytes + kStrideModulus;
  reserved_ = ::mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) {
    fail(ErrorCode::kIo, "shared memory {}: {}", path, std::strerror(errno));
  }
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t rest = reinterpret_cast<std::uintptr_t>(reserved_) % kStrideModulus;
  const std::size_t shift = (kStrideModulus + index * kStride % kStrideModulus - rest) % kStrideModulus / page * page;
  void* const place = static_cast<std::byte*>(reserved_) + shift;
  if (::mmap(place, mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor.get(), 0) == MAP_FAILED) {
    const int error = errno;
    ::munmap(reserved_, reserved_bytes_);
    fail(ErrorCode::kIo, "shared memory {}: {}", path, std::strerror(error));
  }
  bytes_ = {static_cast<std::byte*>(place) + kLead, description.bytes};
}

OthersMemory::~OthersMemory() { ::munmap(reserved_, reserved_bytes_); }

std::span<std::byte> OthersMemory::part(std::uint64_t offset, std::size_t size_bytes, std::size_t alignment) const {
  if (offset > bytes_.size() || size_bytes > bytes_.size() - offset || offset % alignment != 0) {
    fail(ErrorCode::kCorrupt, "server: {} bytes at {} of shared memory of {} bytes", size_bytes, offset, bytes_.size());
  }
  return bytes_.subspan(offset, size_bytes);
}

}  // namespace lockstep::server
