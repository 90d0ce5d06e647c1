// A libnccl for the emulator: ranks are processes of one machine, and every pair of them has a ring of bytes in shared
// memory. As NCCL does, a call returns when it is in its stream, waits there for the other ranks, and never comes back
// from a peer that is gone unless the communicator is aborted.
#include <fcntl.h>
#include <nccl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/stream.h"

extern "C" cudaError_t cudaGetDevice(int* device);  // the program's

namespace {

constexpr std::size_t kRingBytes = std::size_t{256} << 10;
constexpr int kMostRanks = 64;

// Bytes from one rank to another. All zeros is an empty one.
struct Ring {
  std::atomic<std::uint64_t> written;
  std::atomic<std::uint64_t> read;
  std::byte bytes[kRingBytes];
};

struct Shared {
  std::atomic<int> attached;
  std::atomic<int> gpu[kMostRanks];  // counted from 1
};

struct Message {
  int peer;
  bool is_sent;
  std::byte* data;
  std::size_t size_bytes;
  std::size_t moved = 0;
};

// What one call, or one group of calls, does.
struct Work {
  std::vector<Message> messages;
  std::vector<std::function<void()>> afterwards;
  std::vector<std::shared_ptr<std::vector<std::byte>>> memory;
};

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclFloat32:
      return 4;
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

template <typename T>
void add(const std::vector<const std::byte*>& terms, std::byte* sum, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    T value{};
    for (std::size_t term = 0; term < terms.size(); ++term) {
      T next;
      std::memcpy(&next, terms[term] + i * sizeof(T), sizeof(T));
      value = term == 0 ? next : value + next;
    }
    std::memcpy(sum + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

struct ncclComm {
  int rank = 0;
  int world_size = 1;
  std::string name;
  Shared* shared = nullptr;
  Ring* rings = nullptr;
  std::atomic<bool> is_aborted = false;
  std::atomic<ncclResult_t> state = ncclInProgress;

  void connect(int gpu) {
    const std::size_t rings_at = (sizeof(Shared) + 63) / 64 * 64;
    const std::size_t pairs = static_cast<std::size_t>(world_size) * static_cast<std::size_t>(world_size);
    const std::size_t size_bytes = rings_at + pairs * sizeof(Ring);
    const int file = shm_open(name.c_str(), O_RDWR, 0600);
    if (file < 0 || ftruncate(file, static_cast<off_t>(size_bytes)) != 0) {
      state = ncclSystemError;
      return;
    }
    void* const memory = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) {
      state = ncclSystemError;
      return;
    }
    shared = static_cast<Shared*>(memory);
    rings = reinterpret_cast<Ring*>(static_cast<std::byte*>(memory) + rings_at);
    shared->gpu[rank] = gpu + 1;
    ++shared->attached;
    while (shared->attached < world_size) {
      if (is_aborted) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    shm_unlink(name.c_str());
    for (int other = 0; other < world_size; ++other) {
      if (other != rank && shared->gpu[other] == shared->gpu[rank]) {
        state = ncclInvalidUsage;  // "duplicate GPU detected"
        return;
      }
    }
    state = ncclSuccess;
  }

  [[nodiscard]] Ring& ring(int from, int to) const {
    return rings[static_cast<std::size_t>(from) * static_cast<std::size_t>(world_size) + static_cast<std::size_t>(to)];
  }

  // Moves what can be moved now of `message`; whether it was anything.
  [[nodiscard]] bool move(Message& message) const {
    Ring& way = message.is_sent ? ring(rank, message.peer) : ring(message.peer, rank);
    const std::uint64_t written = way.written.load(std::memory_order_acquire);
    const std::uint64_t read = way.read.load(std::memory_order_acquire);
    const std::uint64_t at = message.is_sent ? written : read;
    const std::size_t room = message.is_sent ? kRingBytes - (written - read) : written - read;
    const std::size_t bytes =
        std::min({room, message.size_bytes - message.moved, kRingBytes - static_cast<std::size_t>(at % kRingBytes)});
    if (message.is_sent) {
      std::memcpy(way.bytes + at % kRingBytes, message.data + message.moved, bytes);
      way.written.store(written + bytes, std::memory_order_release);
    } else {
      std::memcpy(message.data + message.moved, way.bytes + at % kRingBytes, bytes);
      way.read.store(read + bytes, std::memory_order_release);
    }
    message.moved += bytes;
    return bytes > 0;
  }

  // Messages of one way follow each other, ways do not wait for each other.
  void run(const Work& work) const {
    std::map<std::pair<int, bool>, std::deque<Message>> ways;
    for (const Message& message : work.messages) {
      ways[{message.peer, message.is_sent}].push_back(message);
    }
    while (!ways.empty()) {
      bool moved = false;
      for (auto way = ways.begin(); way != ways.end();) {
        std::deque<Message>& messages = way->second;
        moved |= move(messages.front());
        if (messages.front().moved == messages.front().size_bytes) {
          messages.pop_front();
        }
        way = messages.empty() ? ways.erase(way) : std::next(way);
      }
      if (is_aborted) {
        return;
      }
      if (!moved) {
        sched_yield();
      }
    }
    for (const std::function<void()>& last : work.afterwards) {
      last();
    }
  }
};

namespace {

// Calls between ncclGroupStart() and ncclGroupEnd(), all of one communicator and stream.
struct OpenGroup {
  int depth = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  Work work;
};
thread_local OpenGroup open_group;

ncclResult_t start(ncclComm_t comm, cudaStream_t stream, Work work) {
  stream->enqueue([comm, work = std::make_shared<Work>(std::move(work))] {
    if (!comm->is_aborted) {
      comm->run(*work);
    }
  });
  return ncclSuccess;
}

// `describe` says what the call does.
template <typename F>
ncclResult_t call(ncclComm_t comm, cudaStream_t stream, ncclDataType_t type, const F& describe) {
  if (comm == nullptr || comm->state != ncclSuccess || size_of(type) == 0) {
    return ncclInvalidArgument;
  }
  if (open_group.depth > 0) {
    open_group.comm = comm;
    open_group.stream = stream;
    describe(open_group.work);
    return ncclSuccess;
  }
  Work work;
  describe(work);
  return start(comm, stream, std::move(work));
}

std::byte* bytes_of(const void* data) { return const_cast<std::byte*>(static_cast<const std::byte*>(data)); }

// Sums what the ranks have of `size_bytes` at `own`, each of which is received here, into `sum`.
void receive_and_add(ncclComm_t comm, Work& work, const void* own, void* sum, std::size_t count, ncclDataType_t type) {
  const std::size_t size_bytes = count * size_of(type);
  std::vector<const std::byte*> terms;
  for (int peer = 0; peer < comm->world_size; ++peer) {
    if (peer == comm->rank) {
      terms.push_back(bytes_of(own));
      continue;
    }
    work.memory.push_back(std::make_shared<std::vector<std::byte>>(size_bytes));
    terms.push_back(work.memory.back()->data());
    work.messages.push_back({peer, false, work.memory.back()->data(), size_bytes});
  }
  work.afterwards.emplace_back([terms, sum, count, type] {
    if (type == ncclFloat64) {
      add<double>(terms, bytes_of(sum), count);
    } else {
      add<float>(terms, bytes_of(sum), count);
    }
  });
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclSystemError:
      return "unhandled system error";
    default:
      return "an error of the emulator's NCCL";
  }
}
const char* ncclGetLastError(ncclComm_t /*comm*/) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> made = 0;
  *id = {};
  std::snprintf(id->internal, sizeof(id->internal), "/lockstep-emulated-nccl-%d-%d", static_cast<int>(getpid()),
                made.fetch_add(1));
  // Made here, for the others to find: a left one of the same name is none of this job's.
  shm_unlink(id->internal);
  const int file = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
  return file < 0 || close(file) != 0 ? ncclSystemError : ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int world_size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (world_size < 1 || world_size > kMostRanks || rank < 0 || rank >= world_size) {
    return ncclInvalidArgument;
  }
  auto* const made = new ncclComm;  // stays: an aborted one may be in use by its stream
  made->rank = rank;
  made->world_size = world_size;
  made->name = id.internal;
  *comm = made;
  int gpu = 0;
  static_cast<void>(cudaGetDevice(&gpu));
  if (config->blocking != 0) {
    made->connect(gpu);
    return made->state;
  }
  std::thread([made, gpu] { made->connect(gpu); }).detach();
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  *state = comm->state;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t /*comm*/) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t /*comm*/) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->is_aborted = true;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++open_group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--open_group.depth > 0 || open_group.comm == nullptr) {
    return ncclSuccess;
  }
  OpenGroup group = std::exchange(open_group, {});
  return start(group.comm, group.stream, std::move(group.work));
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(comm, stream, type, [&](Work& work) {
    work.messages.push_back({peer, true, bytes_of(data), count * size_of(type)});
  });
}
ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(comm, stream, type, [&](Work& work) {
    work.messages.push_back({peer, false, bytes_of(data), count * size_of(type)});
  });
}

ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t /*sum*/,
                           ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, type, [&](Work& work) {
    for (int peer = 0; peer < comm->world_size; ++peer) {
      if (peer != comm->rank) {
        work.messages.push_back({peer, true, bytes_of(from), count * size_of(type)});
      }
    }
    receive_and_add(comm, work, from, to, count, type);
  });
}
ncclResult_t ncclReduceScatter(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t /*sum*/,
                               ncclComm_t comm, cudaStream_t stream) {
  const std::size_t size_bytes = count * size_of(type);
  return call(comm, stream, type, [&](Work& work) {
    for (int peer = 0; peer < comm->world_size; ++peer) {
      if (peer != comm->rank) {
        work.messages.push_back({peer, true, bytes_of(from) + static_cast<std::size_t>(peer) * size_bytes, size_bytes});
      }
    }
    receive_and_add(comm, work, bytes_of(from) + static_cast<std::size_t>(comm->rank) * size_bytes, to, count, type);
  });
}
ncclResult_t ncclReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t /*sum*/,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, type, [&](Work& work) {
    if (comm->rank == root) {
      receive_and_add(comm, work, from, to, count, type);
    } else {
      work.messages.push_back({root, true, bytes_of(from), count * size_of(type)});
    }
  });
}
ncclResult_t ncclAllGather(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  const std::size_t size_bytes = count * size_of(type);
  return call(comm, stream, type, [&](Work& work) {
    for (int peer = 0; peer < comm->world_size; ++peer) {
      std::byte* const part = bytes_of(to) + static_cast<std::size_t>(peer) * size_bytes;
      if (peer != comm->rank) {
        work.messages.push_back({peer, true, bytes_of(from), size_bytes});
        work.messages.push_back({peer, false, part, size_bytes});
      } else if (part != from) {
        work.afterwards.emplace_back([part, from, size_bytes] { std::memmove(part, from, size_bytes); });
      }
    }
  });
}
ncclResult_t ncclBroadcast(const void* from, void* to, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const std::size_t size_bytes = count * size_of(type);
  return call(comm, stream, type, [&](Work& work) {
    if (comm->rank != root) {
      work.messages.push_back({root, false, bytes_of(to), size_bytes});
      return;
    }
    for (int peer = 0; peer < comm->world_size; ++peer) {
      if (peer != root) {
        work.messages.push_back({peer, true, bytes_of(from), size_bytes});
      }
    }
    if (to != from) {
      work.afterwards.emplace_back([to, from, size_bytes] { std::memmove(to, from, size_bytes); });
    }
  });
}
