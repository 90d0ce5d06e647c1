#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "base/error.h"
#include "base/process.h"
#include "comm/communicator.h"
#include "comm/mpi/communicator.h"
#include "comm/rank_environment.h"
#include "comm/self_communicator.h"
#include "comm/server/communicator.h"
#include "comm/server/tls.h"
#include "comm/server/token_file.h"

namespace lockstep {
namespace {

std::unique_ptr<Communicator> connect_to_servers(const CommOptions& options, const RankEnvironment& environment) {
  server::Session::Options session;
  session.servers = server::parse_addresses(options.servers);
  session.token = server::read_token(server::token_file(process_environment()));
  if (environment.starter != Starter::kAlone) {
    session.rank = environment.rank;
    session.world = environment.world_size;
    session.insists = true;
  } else {
    session.rank = options.rank;
  }
  session.timeout_ms = options.timeout_ms;
  session.silence_ms = options.silence_ms;
  session.gives_up = options.gives_up;
  session.shares_memory = options.shared_memory;
  static const auto newest_group = std::make_shared<std::atomic<std::uint64_t>>(0);
  session.newest_group = newest_group;
  if (!options.tls_ca.empty()) {
    session.tls = server::TlsContext::of_worker(options.tls_ca);
  }
  session.name = fmt::format("host {}, process {}", host_name(), ::getpid());
  return make_server_communicator(std::move(session), options.ranks_per_node, server::wire_of(options.wire));
}

}  // namespace

std::unique_ptr<Communicator> make_communicator(const CommOptions& options) {
  const std::string& backend = options.backend;
  require(backend == "auto" || backend == "self" || backend == "mpi" || backend == "nccl" || backend == "server",
          "comm.backend: found \"{}\", expected auto, self, mpi, nccl or server", backend);
  require(options.ranks_per_node >= 0, "comm.ranks_per_node: found {}, expected 0 (as detected) or more",
          options.ranks_per_node);
  require(options.timeout_ms > 0, "comm: the timeout is {} ms, expected more than 0", options.timeout_ms);

  require(options.wire == "fp32" || backend == "server",
          "comm.wire: found {}, which only comm.backend: server has; "
          "with {} gradients are exchanged as fp32",
          options.wire, backend);

  const RankEnvironment environment = detect_rank_environment(process_environment());
  if (backend == "server") {
    return connect_to_servers(options, environment);
  }
  require(environment.starter != Starter::kByHand,
          "comm.backend: LOCKSTEP_RANK gives this worker a rank, which only comm.backend: server takes; found {}",
          backend);
  if (backend == "mpi" || (backend != "self" && environment.world_size != 1)) {
    return make_mpi_communicator(options, environment);
  }
  require(environment.world_size == 1,
          "comm.backend: self makes a world of one rank, but {} ranks were started and each would do the whole job; "
          "use auto or mpi",
          environment.world_size == 0 ? "several" : std::to_string(environment.world_size));
  return std::make_unique<SelfCommunicator>();
}

}  // namespace lockstep
