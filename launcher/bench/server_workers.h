// Parameter servers and workers of a benchmark, all on this machine: the servers in this process, each worker in one of
// its own.
#pragma once

#include <string>
#include <vector>

namespace lockstep {

struct ServerWorkersPlan {
  int workers = 2;
  int servers = 1;
  std::vector<std::string> command;  // of a worker, behind which `--servers LIST --bare-servers LIST` are put
};

// Hands on what the workers print. Returns the first exit code that is not 0, after ending the other workers.
[[nodiscard]] int run_server_workers(const ServerWorkersPlan& plan);

}  // namespace lockstep
