// Files with checked system calls. Every function throws Error(kIo) or Error(kNoSpace), naming the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace lockstep {

// An open file descriptor, closed by its owner. Reads and writes are positioned, so threads may share a File.
class File {
 public:
  [[nodiscard]] static File open_to_read(const std::filesystem::path& path);
  // Creates the file, with these access rights less the process's umask, or empties an existing one.
  [[nodiscard]] static File create(const std::filesystem::path& path, unsigned mode = 0666);
  // For reading and writing; creates the file or keeps what is in an existing one.
  [[nodiscard]] static File open_or_create(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  [[nodiscard]] std::uint64_t size() const;
  // Reads up to bytes.size() bytes at `offset`; returns how many there were (0 at the end of the file).
  [[nodiscard]] std::size_t read_some(std::uint64_t offset, std::span<std::byte> bytes) const;
  // Reads exactly bytes.size() bytes; throws Error(kCorrupt) when the file ends before.
  void read_exactly(std::uint64_t offset, std::span<std::byte> bytes) const;
  void write(std::uint64_t offset, std::span<const std::byte> bytes) const;
  // From now on writes go to the disk without a copy in the system's memory, where the file system can do that and
  // offset, size and address are multiples of 4096. The first write for which that does not hold ends it.
  void bypass_cache() const;
  // Asks the system to start bringing these bytes to the disk now, so that a later sync() has less to wait for. A hint.
  void start_writeback(std::uint64_t offset, std::uint64_t size_bytes) const;
  void truncate(std::uint64_t size_bytes) const;
  // Takes the exclusive advisory lock that goes with the open file and ends with it, at the latest with the process.
  // Returns false when another process holds it; true as well on file systems that have no locks.
  [[nodiscard]] bool try_lock() const;
  // Returns when the contents are on the disk.
  void sync() const;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  File(int descriptor, std::filesystem::path path);
  int descriptor_ = -1;
  std::filesystem::path path_;
};

[[nodiscard]] std::string read_file(const std::filesystem::path& path);

// Where a file of that name is to be written: links are followed. Throws Error(kUsage) where something stands that is
// no file, such as a device, which a new file would replace; `option` ("--out") is what the name was given with.
[[nodiscard]] std::filesystem::path place_of_file(std::string_view option, const std::filesystem::path& path);

enum class Readers { kAsUsual, kOwner };

// Writes path + ".partial", syncs it, renames it to `path` and syncs the folder: readers see the old or the new file
// whole. With Readers::kOwner nobody else can read it, at any moment.
void write_file_atomic(const std::filesystem::path& path, std::string_view contents,
                       Readers readers = Readers::kAsUsual);

// Makes the renames and creations inside a folder durable.
void sync_folder(const std::filesystem::path& folder);

}  // namespace lockstep
