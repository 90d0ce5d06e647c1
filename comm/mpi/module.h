// The shared module that holds everything that calls MPI: the program is not linked with MPI, so it starts, and does
// all else, on machines that have none, and opens the module when a job asks for the mpi backend.
//
// The module has copies of its own of what it uses of base and comm (none of it has state that both would need); an
// Error thrown on one side is caught on the other, and what is made in the module may be destroyed in the program, as
// the module stays open until the process ends. The two have to be of one build, since C++ types cross the boundary.
#pragma once

#include <filesystem>
#include <vector>

#include "comm/communicator.h"
#include "comm/rank_environment.h"

namespace lockstep::mpi {

inline constexpr const char* kModuleFile = "liblockstep_mpi.so";

// The module's one function, under a name that carries a digest of the declarations that both sides share. The caller
// owns the result. Throws what make_mpi_communicator throws.
using Factory = Communicator*(const CommOptions& options, const RankEnvironment& environment);

// The folders that may hold the module, in the order in which they are searched: the program's own (symbolic links
// resolved), ../lib/lockstep from there, and the one that the build put it in.
[[nodiscard]] std::vector<std::filesystem::path> module_folders();

// Opens the module of the first folder that has one. Throws Error(kUnsupported) when there is none, when it cannot be
// opened, as where MPI is not installed, and when it is of another build.
[[nodiscard]] Factory* open_module(const std::vector<std::filesystem::path>& folders);

}  // namespace lockstep::mpi
