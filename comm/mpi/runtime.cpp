#include "comm/mpi/runtime.h"

#include <atomic>
#include <cstdlib>

#include "base/error.h"
#include "comm/mpi/check.h"
#include "comm/rank_environment.h"

namespace lockstep::mpi {
namespace {

enum class State { kIdle, kInUse, kAbandoned };

// MPI is a property of the process, not of an object, and so is this.
std::atomic<State> process_state = State::kIdle;

void finalize_at_exit() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0 && process_state == State::kIdle) {
    MPI_Finalize();
  }
}

// Settings of Open MPI that hold unless the user chose otherwise; other MPIs do not read them.
void prefer(const char* variable, const char* value) { ::setenv(variable, value, 0); }

// At the end of MPI_Init Open MPI waits for all ranks by a PMIx fence without data. For that Slurm (21.08 to 26.05)
// builds a tree of the job's nodes; where they are fewer than its TreeWidth, each takes itself for the root of a tree
// of its own (reverse_tree_info() in src/common/reverse_tree.c), and the fence waits for nobody. A rank that is still
// in MPI_Init when the first message of one that has left it comes ends in a segmentation fault. Fences by a ring are
// sound.
bool has_sound_barrier() {
  const EnvironmentLookup environment = process_environment();
  return detect_rank_environment(environment).starter != Starter::kSrun ||
         environment("SLURM_PMIX_FENCE").value_or("") == "ring";
}

void initialize() {
  // Ranks in containers may not read each other's memory (process_vm_readv), and Open MPI then prints an error for each
  // message. Large sums within a node do not go through messages at all.
  prefer("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
  prefer("OMPI_MCA_btl_sm_use_cma", "0");
  if (!has_sound_barrier()) {
    // It is too late to ask Slurm for a ring. But now the one fence with data, by a ring always, lasts until the end of
    // MPI_Init, and a rank looks for messages only once it can take them.
    prefer("OMPI_MCA_pmix_base_async_modex", "1");
  }
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  std::atexit(finalize_at_exit);
}

}  // namespace

Runtime::Runtime() {
  State expected = State::kIdle;
  if (!process_state.compare_exchange_strong(expected, State::kInUse)) {
    require(expected != State::kInUse, "comm: this process has an mpi communicator already, expected at most one");
    fail(ErrorCode::kUsage, "comm: an earlier mpi communicator ended without close(), expected the process to exit");
  }
  int initialized = 0;
  check(MPI_Initialized(&initialized), "MPI_Initialized");
  if (initialized == 0) {
    initialize();
  }
  constexpr int kNeeded = MPI_THREAD_SERIALIZED;
  int level = MPI_THREAD_SINGLE;
  check(MPI_Query_thread(&level), "MPI_Query_thread");
  if (level < kNeeded) {
    process_state = State::kIdle;
    fail(ErrorCode::kUnsupported,
         "comm: this MPI offers thread level {}, expected MPI_THREAD_SERIALIZED ({}): use an MPI built with threads",
         level, int{MPI_THREAD_SERIALIZED});
  }
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

Runtime::~Runtime() {
  State expected = State::kInUse;
  process_state.compare_exchange_strong(expected, State::kAbandoned);
}

void Runtime::release() { process_state = State::kIdle; }

}  // namespace lockstep::mpi
