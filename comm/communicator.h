// A Communicator moves buffers between the ranks of one job.
//
// Every rank makes the same calls in the same order, from one thread. After an Error the group is unusable: destroy it
// and restart the job. Destroying it needs no other rank: it leaves the group, which every other rank notices as a lost
// peer. A run that went well ends with close(), which all ranks call.
//
// Sums follow the balanced binary tree of docs/determinism.md: with the ranks in order at its leaves, neighbours r^1
// are added first, then r^2, r^4, ... IEEE addition commutes, so every backend that keeps the tree gives the same bits.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"

namespace lockstep {

// A started collective. The destructor waits, and swallows an error that wait() would have thrown.
class Work {
 public:
  class State {
   public:
    virtual ~State() = default;
    virtual void wait() = 0;                         // see Work::wait
    [[nodiscard]] virtual bool is_done() const = 0;  // never blocks
  };

  Work() = default;  // already done
  explicit Work(std::shared_ptr<State> state);
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept;
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  ~Work();

  // Returns when the result is in place. Throws Error(kTimeout, kPeerLost), which name the rank that was waited for.
  void wait();
  [[nodiscard]] bool is_done() const;

 private:
  std::shared_ptr<State> state_;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int world_size() const = 0;
  // Ranks that share this rank's memory, itself included (comm.ranks_per_node overrides what was detected).
  [[nodiscard]] virtual int node_size() const = 0;
  // "self: 1 rank": for the log.
  [[nodiscard]] virtual std::string description() const = 0;

  // Zeroed memory in which sums and all_gather_ranges need no staging copy. Collective, with the same size on every
  // rank. Must be destroyed before the communicator.
  [[nodiscard]] virtual Buffer allocate(std::size_t size_bytes) = 0;

  // Starts replacing `data` (f32 or f64) by its sum over all ranks, along the tree. `data` has the same count and dtype
  // on every rank, may lie anywhere, and must not be touched before Work::wait(). f32 is for gradients: where
  // CommOptions::wire says so, it travels rounded. Several may be in flight; they run in
  // the order of the calls. Small ones (up to 4 MiB within a node, 1 MiB between nodes) may begin only when they
  // are waited for, or when is_done() asks for them.
  [[nodiscard]] virtual Work all_reduce_sum(BufferView data) = 0;

  // The same sum, of which rank r receives elements owned[r] only: what `data` holds elsewhere is undefined afterwards.
  // The ranges, one a rank, follow one another and cover `data`; they are the same on every rank and stay valid until
  // Work::wait().
  [[nodiscard]] virtual Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) = 0;
  // Starts copying elements owned[r] of rank r's `data` to every other rank's, bit by bit, whatever their dtype. The
  // ranges do not overlap, and ascend; otherwise as above.
  [[nodiscard]] virtual Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) = 0;

  // Blocking. `bytes` has the same size on every rank.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  // Blocking. all.size() == world_size() * mine.size(); rank r's bytes land at r * mine.size().
  virtual void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // Blocking.
  virtual void barrier() = 0;

  // Throws Error(kPeerLost) that names a rank when one is known to be gone, and returns at once otherwise. For who
  // waits for other ranks by other means. The only call that a rank may make alone.
  virtual void check_peers() {}

  // Whether a rank that is lost can be replaced while the others keep what they have. Such ranks say when they start
  // what they have: see trainer/rank_state.h.
  [[nodiscard]] virtual bool replaces_ranks() const { return false; }
  // After an Error: whether the job goes on, with those who make a new communicator with the same options.
  [[nodiscard]] virtual bool may_rejoin() const { return false; }

  // For benchmarks: milliseconds that the all-reduce of the library below takes for the f32 of `data`, on average over
  // `repeats` > 0 calls in a row. Its sums have the library's own order, so training never uses it. Collective and
  // blocking; MPI's has no deadline. 0 where no library sums such memory.
  [[nodiscard]] virtual double time_library_sum(BufferView data, int repeats) = 0;

  // The orderly end, called by all ranks when every Work has been waited for and every Buffer from allocate() is gone:
  // afterwards the process may exit as it likes, or make another communicator. Without it the destructor tells the
  // other ranks that this one left; the process should then end through end_process(), with an exit code that is not 0.
  virtual void close() {}

  // Texts of any length, built on the calls above.
  [[nodiscard]] std::vector<std::string> all_gather_text(const std::string& mine);
  [[nodiscard]] std::string broadcast_text(const std::string& text, int root);
};

struct CommOptions {
  std::string backend = "auto";  // auto, self, mpi, nccl, server
  int ranks_per_node = 0;        // 0: as detected; otherwise consecutive ranks are taken in groups of this many
  int timeout_ms = 600'000;      // how long a rank may keep the others waiting in one call
  int silence_ms = 0;  // of backend `server`: who says nothing for so long, worker or server, is lost; 0: no limit
  // Sums of GPU memory go along the tree; false: in NCCL's own order, which is the fastest, and reproducible for one
  // rank count. Sums of host memory keep the tree either way.
  bool elastic = true;
  std::function<bool()> gives_up = {};  // of backend `server`: no longer wait for other ranks; may be empty
  std::string servers = {};  // of backend `server`: HOST:PORT of every parameter server, in the order of their parts
  std::optional<int> rank =
      {};                     // of backend `server`: the one that this process had before, unless one is chosen by hand
  std::string wire = "fp32";  // of backend `server`: how the elements of f32 sums travel; fp32, bf16, int8
  bool shared_memory = true;  // of backend `server`: sums in memory shared with servers on this machine
  std::string tls_ca = {};  // of backend `server`: the PEM file of whom to trust; empty: connections are not encrypted
};

// The communicator of host memory. Initialises MPI where the environment asks for it (see rank_environment.h). `auto`
// and `nccl`, which moves GPUs' memory only (comm/nccl): mpi when started with more than one rank, self otherwise.
// `server` never touches MPI; it takes the token that comm/server/token_file.h finds.
// Throws Error(kUsage) when the job was started in a way that would give N single-rank jobs. At most one mpi
// communicator may exist at a time.
[[nodiscard]] std::unique_ptr<Communicator> make_communicator(const CommOptions& options);

// Flushes stdio and ends the process without running exit handlers. For the command line, when a group ended in an
// Error: MPI's own clean-up needs the other ranks, and a rank that is gone would be waited for without a deadline.
// mpirun ends the remaining ranks when one exits like this; srun does with --kill-on-bad-exit.
[[noreturn]] void end_process(int exit_code);

}  // namespace lockstep
