#include "launcher/store_job.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/process.h"
#include "comm/server/store_client.h"
#include "comm/server/store_server.h"
#include "comm/server/token_file.h"
#include "launcher/output.h"
#include "launcher/server_stop.h"
#include "ops/backend.h"
#include "trainer/async_update.h"
#include "trainer/share_communicator.h"

namespace lockstep {
namespace {

constexpr std::chrono::milliseconds kSignalCheck{50};

server::StoreClient::Options client_options(const CommConfig& config, const RankEnvironment& ranks) {
  server::StoreClient::Options options;
  options.servers = server::parse_addresses(config.servers);
  options.token = server::read_token(server::token_file(process_environment()));
  if (ranks.starter != Starter::kAlone) {
    options.rank = ranks.rank;
    options.world = ranks.world_size;
  }
  options.timeout_ms = config.timeout_s * 1000;
  options.name = fmt::format("host {}, process {}", host_name(), ::getpid());
  if (!config.tls_ca.empty()) {
    options.tls = server::TlsContext::of_worker(config.tls_ca);
  }
  options.mode = config.mode == "async" ? server::Mode::kAsync : server::Mode::kBounded;
  return options;
}

}  // namespace

int train_through_store(TrainRequest request, CommandContext& context) {
  server::StoreClient store(client_options(request.config.comm, context.ranks));
  context.log.set_rank(store.rank(), store.world());
  ShareCommunicator share(store.rank(), store.world());
  request.store = &store;
  return train(request, share, context.log) == TrainEnd::kFinished ? kExitDone : kExitRequeue;
}

int serve_store(const StoreJob& job, CommandContext& context) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(job.threads);
  server::StoreServer::Options options;
  options.token = server::read_or_create_token(job.token_file);
  options.listen = job.listen;
  options.port = job.port;
  options.workers = job.workers;
  options.part = job.part;
  options.parts = job.parts;
  options.mode = job.mode;
  options.tls = job.tls;
  options.state = job.state;
  options.make_rule = [&backend](const std::string& description, ElementRange range) {
    return make_update_rule(description, range, *backend);
  };
  options.say = [&log = context.log](LogLevel level, const std::string& text) { log.write(level, "serve: " + text); };
  context.stop.listen(StopSignal::Second::kIsCounted);
  server::StoreServer server(std::move(options));
  const std::string address = fmt::format("{}:{}", job.listen, server.port());
  context.log.info("serve: part {}/{} for {} worker{} at {}, mode {}, token in {}", job.part + 1, job.parts,
                   job.workers, job.workers == 1 ? "" : "s", address, server::name_of(job.mode),
                   job.token_file.string());
  print(address + "\n");

  ServerStop stop(context.stop, context.log);
  std::optional<server::StoreServer::End> end;
  while (!end) {
    end = server.wait_for_end(kSignalCheck);
    const ServerStop::Due due = end ? ServerStop::Due::kNothing : stop.look(server.has_workers());
    if (due == ServerStop::Due::kWish) {
      server.stop();
    } else if (due == ServerStop::Due::kEnd) {
      if (!server.has_begun()) {
        return kExitDone;
      }
      if (!server.has_workers() && !job.state.empty()) {
        context.log.info("serve: stopped by a signal; what the server holds is in {}", job.state.string());
        return kExitRequeue;
      }
      server.end("the parameter server " + address + " was stopped by a signal");
    }
  }
  if (!end->orderly) {
    fail(ErrorCode::kPeerLost, "{}", end->cause);
  }
  const auto in_steps = [&](double updates) { return updates / job.workers; };
  const auto pushes = static_cast<double>(end->staleness.pushes);
  context.log.info("serve: all workers have ended; {} updates, {:.2f} steps behind on average, {:.2f} at most",
                   end->updates, pushes > 0 ? in_steps(static_cast<double>(end->staleness.sum) / pushes) : 0.0,
                   in_steps(static_cast<double>(end->staleness.max)));
  if (end->missing > 0) {
    context.log.warning("serve: {} steps of lost workers are missing", end->missing);
  }
  return kExitDone;
}

}  // namespace lockstep
