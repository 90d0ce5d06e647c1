#include "data/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <cassert>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

// One for the whole process: the library keeps global tables, and need not have been built to protect them.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// Held by every function that calls the library.
class LibraryLock {
 public:
  LibraryLock() : lock_(library_mutex()) {
    // The automatic printing of errors is a setting of the thread.
    static thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
    static_cast<void>(quiet);
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// HDF5's reason for the error that just happened: the innermost description on its error stack.
std::string innermost_reason() {
  std::string reason;
  const auto take_first = [](unsigned depth, const H5E_error2_t* error, void* text) -> herr_t {
    if (depth == 0 && error->desc != nullptr) {
      *static_cast<std::string*>(text) = error->desc;
    }
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  return reason.empty() ? "no reason given" : reason;
}

// Throws with HDF5's reason: kNoSpace when the disk is full, `code` otherwise.
[[noreturn]] void fail_hdf5(ErrorCode code, const std::string& what) {
  const std::string reason = innermost_reason();
  if (reason.find("errno = 28") != std::string::npos || reason.find("No space left") != std::string::npos) {
    fail(ErrorCode::kNoSpace, "{}: No space left on device", what);
  }
  fail(code, "{}: {}", what, reason);
}

// An HDF5 identifier with the function that releases it.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { static_cast<void>(release()); }

  [[nodiscard]] hid_t get() const { return id_; }
  [[nodiscard]] bool is_open() const { return id_ >= 0; }
  // Returns whether releasing went well.
  [[nodiscard]] bool release() {
    if (id_ < 0) {
      return true;
    }
    const LibraryLock lock;
    return close_(std::exchange(id_, H5I_INVALID_HID)) >= 0;
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

// Wraps a new identifier; throws when the library did not give one.
Handle checked(hid_t id, Handle::Close close, ErrorCode code, const std::string& what) {
  if (id < 0) {
    fail_hdf5(code, what);
  }
  return {id, close};
}

void check(herr_t status, ErrorCode code, const std::string& what) {
  if (status < 0) {
    fail_hdf5(code, what);
  }
}

hid_t stored_type(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return H5T_STD_U8LE;
    case DType::kU16:
      return H5T_STD_U16LE;
    case DType::kU32:
      return H5T_STD_U32LE;
    case DType::kU64:
      return H5T_STD_U64LE;
    default:
      assert(false && "only unsigned integers are stored");
      return H5I_INVALID_HID;
  }
}

hid_t memory_type(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return H5T_NATIVE_UINT8;
    case DType::kU16:
      return H5T_NATIVE_UINT16;
    case DType::kU32:
      return H5T_NATIVE_UINT32;
    case DType::kU64:
      return H5T_NATIVE_UINT64;
    default:
      assert(false && "no such type in memory");
      return H5I_INVALID_HID;
  }
}

Handle access_properties(const std::string& what) {
  Handle properties = checked(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, ErrorCode::kIo, what);
  // Locks are refused by some network file systems and protect nothing here: finished shards do not change.
  check(H5Pset_file_locking(properties.get(), false, true), ErrorCode::kIo, what);
  return properties;
}

// The dtype of an array of unsigned integers; throws for anything else.
DType dtype_of_array(hid_t array, const std::string& what) {
  const Handle type = checked(H5Dget_type(array), H5Tclose, ErrorCode::kCorrupt, what);
  if (H5Tget_class(type.get()) != H5T_INTEGER || H5Tget_sign(type.get()) != H5T_SGN_NONE) {
    fail(ErrorCode::kCorrupt, "{}: not of unsigned integers", what);
  }
  switch (H5Tget_size(type.get())) {
    case 1:
      return DType::kU8;
    case 2:
      return DType::kU16;
    case 4:
      return DType::kU32;
    case 8:
      return DType::kU64;
    default:
      fail(ErrorCode::kCorrupt, "{}: integers of {} bytes, expected 1, 2, 4 or 8", what, H5Tget_size(type.get()));
  }
}

struct Storage {
  std::uint64_t chunk = 0;  // elements; 0: not chunked
  bool is_filtered = false;
};

Storage storage_of(hid_t array, const std::string& what) {
  const Handle properties = checked(H5Dget_create_plist(array), H5Pclose, ErrorCode::kCorrupt, what);
  if (H5Pget_layout(properties.get()) != H5D_CHUNKED) {
    return {};
  }
  hsize_t chunk = 0;
  const int dimensions = H5Pget_chunk(properties.get(), 1, &chunk);
  if (dimensions < 0) {
    fail_hdf5(ErrorCode::kCorrupt, what);
  }
  if (dimensions != 1) {
    fail(ErrorCode::kCorrupt, "{}: {} dimensions, expected 1", what, dimensions);
  }
  return {chunk, H5Pget_nfilters(properties.get()) > 0};
}

// Samples are short beside a chunk and come in random order. Without a cache the library reads just the bytes of a
// sample; compressed chunks (a dataset that somebody repacked) have to be decoded whole, so a few of them are kept.
Handle open_with_fitting_cache(hid_t file, const std::string& name, const std::string& what) {
  Handle properties = checked(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose, ErrorCode::kIo, what);
  constexpr std::size_t kSlots = 521;
  check(H5Pset_chunk_cache(properties.get(), kSlots, 0, 1.0), ErrorCode::kIo, what);
  Handle array = checked(H5Dopen2(file, name.c_str(), properties.get()), H5Dclose, ErrorCode::kCorrupt, what);
  const Storage storage = storage_of(array.get(), what);
  if (storage.is_filtered) {
    constexpr std::size_t kChunks = 8;
    const std::size_t chunk_bytes = storage.chunk * size_of(dtype_of_array(array.get(), what));
    check(H5Pset_chunk_cache(properties.get(), kSlots, kChunks * chunk_bytes, 1.0), ErrorCode::kIo, what);
    static_cast<void>(array.release());
    array = checked(H5Dopen2(file, name.c_str(), properties.get()), H5Dclose, ErrorCode::kCorrupt, what);
  }
  return array;
}

}  // namespace

struct Hdf5File::State {
  struct Array {
    Handle handle;
    std::uint64_t size = 0;
    DType dtype = DType::kU16;
  };

  std::filesystem::path path;
  std::shared_ptr<Handle> file;  // shared with the arrays opened from it
  std::map<std::string, Array> created;
};

struct Hdf5Array::State {
  std::string what;  // for messages
  std::shared_ptr<Handle> file;
  Handle array;
  Handle file_space;
  Handle memory_space;
  std::uint64_t memory_count = 0;  // elements of memory_space
  std::uint64_t size = 0;
  std::uint64_t chunk = 0;
  DType dtype = DType::kU16;
};

Hdf5Array::Hdf5Array(std::unique_ptr<State> state) : state_(std::move(state)) {}
Hdf5Array::Hdf5Array(Hdf5Array&&) noexcept = default;
Hdf5Array& Hdf5Array::operator=(Hdf5Array&&) noexcept = default;
Hdf5Array::~Hdf5Array() = default;

std::uint64_t Hdf5Array::size() const { return state_->size; }
DType Hdf5Array::dtype() const { return state_->dtype; }
std::uint64_t Hdf5Array::chunk() const { return state_->chunk; }

void Hdf5Array::read(std::uint64_t begin, std::span<std::uint8_t> values) const {
  read_as(DType::kU8, begin, values.size(), values.data());
}
void Hdf5Array::read(std::uint64_t begin, std::span<std::uint16_t> values) const {
  read_as(DType::kU16, begin, values.size(), values.data());
}
void Hdf5Array::read(std::uint64_t begin, std::span<std::uint32_t> values) const {
  read_as(DType::kU32, begin, values.size(), values.data());
}
void Hdf5Array::read(std::uint64_t begin, std::span<std::uint64_t> values) const {
  read_as(DType::kU64, begin, values.size(), values.data());
}

void Hdf5Array::read_as(DType dtype, std::uint64_t begin, std::uint64_t count, void* values) const {
  State& state = *state_;
  require(begin <= state.size && count <= state.size - begin, "{}: elements {} to {} were asked for, it has {}",
          state.what, begin, begin + count, state.size);
  if (count == 0) {
    return;
  }
  const LibraryLock lock;
  if (state.memory_count != count) {
    const hsize_t extent = count;
    state.memory_space = checked(H5Screate_simple(1, &extent, nullptr), H5Sclose, ErrorCode::kIo, state.what);
    state.memory_count = count;
  }
  const hsize_t offset = begin;
  const hsize_t extent = count;
  check(H5Sselect_hyperslab(state.file_space.get(), H5S_SELECT_SET, &offset, nullptr, &extent, nullptr), ErrorCode::kIo,
        state.what);
  check(H5Dread(state.array.get(), memory_type(dtype), state.memory_space.get(), state.file_space.get(), H5P_DEFAULT,
                values),
        ErrorCode::kCorrupt, state.what);
}

Hdf5File::Hdf5File(std::unique_ptr<State> state) : state_(std::move(state)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&&) noexcept = default;
Hdf5File::~Hdf5File() = default;

Hdf5File Hdf5File::open_to_read(const std::filesystem::path& path) {
  static_cast<void>(File::open_to_read(path));  // the operating system's reason when it cannot be read
  const LibraryLock lock;
  const std::string what = fmt::format("open {}", path.string());
  const Handle access = access_properties(what);
  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  if (is_hdf5 <= 0) {
    fail(ErrorCode::kCorrupt, "{}: not an HDF5 file", what);
  }
  auto state = std::make_unique<State>();
  state->path = path;
  state->file = std::make_shared<Handle>(
      checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose, ErrorCode::kCorrupt, what));
  return Hdf5File(std::move(state));
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  static_cast<void>(File::create(path));  // the operating system's reason when it cannot be made
  const LibraryLock lock;
  const std::string what = fmt::format("create {}", path.string());
  const Handle access = access_properties(what);
  auto state = std::make_unique<State>();
  state->path = path;
  state->file = std::make_shared<Handle>(
      checked(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose, ErrorCode::kIo, what));
  return Hdf5File(std::move(state));
}

Hdf5Array Hdf5File::open_array(const std::string& name) const {
  const LibraryLock lock;
  auto state = std::make_unique<Hdf5Array::State>();
  state->what = fmt::format("read {} of {}", name, state_->path.string());
  if (H5Lexists(state_->file->get(), name.c_str(), H5P_DEFAULT) <= 0) {
    fail(ErrorCode::kCorrupt, "{}: there is no such dataset", state->what);
  }
  state->file = state_->file;
  state->array = open_with_fitting_cache(state_->file->get(), name, state->what);
  state->dtype = dtype_of_array(state->array.get(), state->what);
  state->chunk = storage_of(state->array.get(), state->what).chunk;
  state->file_space = checked(H5Dget_space(state->array.get()), H5Sclose, ErrorCode::kCorrupt, state->what);
  const int dimensions = H5Sget_simple_extent_ndims(state->file_space.get());
  if (dimensions != 1) {
    fail(ErrorCode::kCorrupt, "{}: {} dimensions, expected 1", state->what, dimensions);
  }
  hsize_t extent = 0;
  H5Sget_simple_extent_dims(state->file_space.get(), &extent, nullptr);
  state->size = extent;
  if (state->chunk == 0) {
    state->chunk = extent;
  }
  return Hdf5Array(std::move(state));
}

void Hdf5File::create_array(const std::string& name, DType dtype, std::uint64_t chunk) {
  assert(chunk > 0);
  const LibraryLock lock;
  const std::string what = fmt::format("create {} in {}", name, state_->path.string());
  const hsize_t none = 0;
  const hsize_t unlimited = H5S_UNLIMITED;
  const hsize_t chunk_extent = chunk;
  const Handle space = checked(H5Screate_simple(1, &none, &unlimited), H5Sclose, ErrorCode::kIo, what);
  const Handle creation = checked(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, ErrorCode::kIo, what);
  check(H5Pset_chunk(creation.get(), 1, &chunk_extent), ErrorCode::kIo, what);
  check(H5Pset_obj_track_times(creation.get(), false), ErrorCode::kIo, what);
  const Handle access = checked(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose, ErrorCode::kIo, what);
  constexpr std::size_t kSlots = 521;
  check(H5Pset_chunk_cache(access.get(), kSlots, 2 * chunk * size_of(dtype), 1.0), ErrorCode::kIo, what);
  State::Array array;
  array.dtype = dtype;
  array.handle = checked(H5Dcreate2(state_->file->get(), name.c_str(), stored_type(dtype), space.get(), H5P_DEFAULT,
                                    creation.get(), access.get()),
                         H5Dclose, ErrorCode::kIo, what);
  state_->created.emplace(name, std::move(array));
}

void Hdf5File::append(const std::string& name, std::span<const std::uint8_t> values) {
  append_as(DType::kU8, name, values.size(), values.data());
}
void Hdf5File::append(const std::string& name, std::span<const std::uint16_t> values) {
  append_as(DType::kU16, name, values.size(), values.data());
}
void Hdf5File::append(const std::string& name, std::span<const std::uint32_t> values) {
  append_as(DType::kU32, name, values.size(), values.data());
}
void Hdf5File::append(const std::string& name, std::span<const std::uint64_t> values) {
  append_as(DType::kU64, name, values.size(), values.data());
}

void Hdf5File::append_as(DType dtype, const std::string& name, std::uint64_t count, const void* values) {
  State::Array& array = state_->created.at(name);
  assert(array.dtype == dtype);
  if (count == 0) {
    return;
  }
  const LibraryLock lock;
  const std::string what = fmt::format("write {} of {}", name, state_->path.string());
  const hsize_t offset = array.size;
  const hsize_t extent = count;
  const hsize_t new_size = array.size + count;
  check(H5Dset_extent(array.handle.get(), &new_size), ErrorCode::kIo, what);
  const Handle file_space = checked(H5Dget_space(array.handle.get()), H5Sclose, ErrorCode::kIo, what);
  check(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &offset, nullptr, &extent, nullptr), ErrorCode::kIo,
        what);
  const Handle memory_space = checked(H5Screate_simple(1, &extent, nullptr), H5Sclose, ErrorCode::kIo, what);
  check(H5Dwrite(array.handle.get(), memory_type(dtype), memory_space.get(), file_space.get(), H5P_DEFAULT, values),
        ErrorCode::kIo, what);
  array.size = new_size;
}

void Hdf5File::close() {
  const std::string what = fmt::format("write {}", state_->path.string());
  {
    const LibraryLock lock;
    check(H5Fflush(state_->file->get(), H5F_SCOPE_LOCAL), ErrorCode::kIo, what);
    for (auto& [name, array] : state_->created) {
      if (!array.handle.release()) {
        fail_hdf5(ErrorCode::kIo, what);
      }
    }
    if (!state_->file->release()) {
      fail_hdf5(ErrorCode::kIo, what);
    }
  }
  File::open_to_read(state_->path).sync();
}

}  // namespace lockstep
