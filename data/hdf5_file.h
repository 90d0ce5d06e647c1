// HDF5 files with one-dimensional integer datasets, behind RAII types with every call checked. Only hdf5_file.cpp
// includes hdf5.h.
//
// Threads: the library need not have been built thread-safe, so one process-wide mutex is held inside every function
// here. Objects may be used from any thread, by one at a time. HDF5's own messages on stderr and its file locks (which
// network file systems refuse) are off.
//
// Errors are one line naming file, dataset and HDF5's innermost reason: kCorrupt for a file that does not hold what was
// asked for, kNoSpace for a full disk, kIo for what the operating system refused.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace lockstep {

class Hdf5File;

// A dataset of unsigned integers open for reading. Keeps its file open.
class Hdf5Array {
 public:
  Hdf5Array(Hdf5Array&&) noexcept;
  Hdf5Array& operator=(Hdf5Array&&) noexcept;
  ~Hdf5Array();

  [[nodiscard]] std::uint64_t size() const;  // elements
  [[nodiscard]] DType dtype() const;         // kU8, kU16, kU32 or kU64
  // Elements in a chunk; size() when the dataset is not chunked.
  [[nodiscard]] std::uint64_t chunk() const;

  // Fills `values` with the elements from `begin` on, converted to T where dtype() is another width.
  void read(std::uint64_t begin, std::span<std::uint8_t> values) const;
  void read(std::uint64_t begin, std::span<std::uint16_t> values) const;
  void read(std::uint64_t begin, std::span<std::uint32_t> values) const;
  void read(std::uint64_t begin, std::span<std::uint64_t> values) const;

 private:
  friend class Hdf5File;
  struct State;
  explicit Hdf5Array(std::unique_ptr<State> state);
  void read_as(DType dtype, std::uint64_t begin, std::uint64_t count, void* values) const;
  std::unique_ptr<State> state_;
};

// A file, open for reading or being written.
class Hdf5File {
 public:
  // Throws Error(kCorrupt) for a file that is not HDF5 or is cut short.
  [[nodiscard]] static Hdf5File open_to_read(const std::filesystem::path& path);
  // Creates the file or replaces an existing one. The same calls give the same bytes: nothing in it depends on the
  // time.
  [[nodiscard]] static Hdf5File create(const std::filesystem::path& path);

  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();

  // Throws Error(kCorrupt) unless there is a one-dimensional dataset of unsigned integers of that name.
  [[nodiscard]] Hdf5Array open_array(const std::string& name) const;

  // Of a created file: adds an empty dataset that append() grows. `chunk` > 0 elements.
  void create_array(const std::string& name, DType dtype, std::uint64_t chunk);
  // Appends to an array of this file; `values` has the array's dtype.
  void append(const std::string& name, std::span<const std::uint8_t> values);
  void append(const std::string& name, std::span<const std::uint16_t> values);
  void append(const std::string& name, std::span<const std::uint32_t> values);
  void append(const std::string& name, std::span<const std::uint64_t> values);
  // Writes everything out, syncs it to the disk and closes. A destructor without close() closes and reports nothing.
  void close();

 private:
  struct State;
  explicit Hdf5File(std::unique_ptr<State> state);
  void append_as(DType dtype, const std::string& name, std::uint64_t count, const void* values);
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
