#include "trainer/node_cores.h"

#include <unistd.h>

#include <algorithm>
#include <climits>

#include "base/cores.h"

namespace lockstep {

int cores_on_node(Communicator& communicator) {
  char host[HOST_NAME_MAX + 1] = {};
  gethostname(host, HOST_NAME_MAX);
  const int cores = cores_of_host(host, communicator.all_gather_text(describe_cores(host, allowed_cores())));
  const int quota = core_quota();
  return quota > 0 ? std::min(cores, quota) : cores;
}

}  // namespace lockstep
