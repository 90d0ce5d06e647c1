#include "comm/mpi/module.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <string>
#include <system_error>

#include "base/error.h"
#include "comm/mpi/communicator.h"

namespace lockstep::mpi {
namespace {

namespace fs = std::filesystem;

fs::path find_module(const std::vector<fs::path>& folders) {
  std::string searched;
  for (const fs::path& folder : folders) {
    std::error_code ignored;
    if (fs::exists(folder / kModuleFile, ignored)) {
      return folder / kModuleFile;
    }
    searched += (searched.empty() ? "" : ", ") + folder.string();
  }
  fail(ErrorCode::kUnsupported,
       "comm.backend: mpi: {} was not found in any of {}; it belongs to this program, beside which it may be copied",
       kModuleFile, searched);
}

}  // namespace

std::vector<fs::path> module_folders() {
  std::vector<fs::path> folders;
  std::error_code error;
  if (const fs::path program = fs::read_symlink("/proc/self/exe", error); !error) {
    folders = {program.parent_path(), program.parent_path().parent_path() / "lib" / "lockstep"};
  }
  if (const fs::path built = LOCKSTEP_MPI_MODULE_FOLDER; folders.empty() || folders.front() != built) {
    folders.push_back(built);
  }
  return folders;
}

Factory* open_module(const std::vector<fs::path>& folders) {
  const fs::path file = find_module(folders);
  // Global, with the libraries that come along: Open MPI's plugins take the symbols of its library from there.
  void* const handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  if (handle == nullptr) {
    const char* const reason = ::dlerror();
    fail(ErrorCode::kUnsupported,
         "comm.backend: mpi: {} cannot be opened: {}; install the MPI that this program was built with (Debian's "
         "package "
         "openmpi-bin), or use comm.backend: server, which needs none",
         file.string(), reason == nullptr ? "no reason was given" : reason);
  }
  void* const factory = ::dlsym(handle, LOCKSTEP_MPI_FACTORY_NAME);
  if (factory == nullptr) {
    fail(ErrorCode::kUnsupported,
         "comm.backend: mpi: {} belongs to another build than this program: it has no {}; use the one that was built "
         "with it",
         file.string(), LOCKSTEP_MPI_FACTORY_NAME);
  }
  return reinterpret_cast<Factory*>(factory);
}

}  // namespace lockstep::mpi

namespace lockstep {

std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions& options, const RankEnvironment& environment) {
  mpi::Factory* const make = mpi::open_module(mpi::module_folders());
  return std::unique_ptr<Communicator>(make(options, environment));
}

}  // namespace lockstep
