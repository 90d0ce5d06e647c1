// MPI's life in this process: initialised once, used by one communicator at a time, finalised when the process exits,
// but only if every communicator was closed. MPI_Finalize waits for all ranks without a deadline, so a process that
// lost its group exits without it.
#pragma once

namespace lockstep::mpi {

class Runtime {
 public:
  // Initialises MPI unless somebody has, and claims it. Throws Error(kUsage) while another Runtime exists or after one
  // was destroyed without release(), and Error(kUnsupported) when MPI cannot be called from more than one thread in
  // turn.
  Runtime();
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // All ranks have ended their communicator: MPI may be used again, or finalised.
  void release();
};

}  // namespace lockstep::mpi
