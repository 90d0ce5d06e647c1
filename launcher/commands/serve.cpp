// lockstep serve: a parameter server for one job of lockstep train.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/server/server.h"
#include "comm/server/tls.h"
#include "comm/server/token_file.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "launcher/server_stop.h"
#include "launcher/store_job.h"

namespace lockstep {
namespace {

constexpr std::chrono::milliseconds kSignalCheck{50};

struct ServeOptions {
  int workers = 0;
  std::uint16_t port = 7070;
  std::string listen = "127.0.0.1";
  std::string part = "1/1";
  int min_workers = 0;
  int wait_s = 600;
  std::string token_file;
  std::string tls_cert;
  std::string tls_key;
  std::string mode = "sync";
  std::string state;
  int threads = 1;
};

// Parts [first, last) of `total`.
struct Parts {
  int first = 0;
  int last = 1;
  int total = 1;
};

// "2/3": the second of three; "1-2/4": the first two of four.
Parts parse_parts(const std::string& text) {
  static const std::regex kForm("([0-9]{1,6})(-([0-9]{1,6}))?/([0-9]{1,6})");
  std::smatch found;
  Parts parts;
  const bool is_right = std::regex_match(text, found, kForm);
  if (is_right) {
    parts.first = std::stoi(found[1]) - 1;
    parts.last = found[3].matched ? std::stoi(found[3]) : parts.first + 1;
    parts.total = std::stoi(found[4]);
  }
  require(is_right && parts.first >= 0 && parts.first < parts.last && parts.last <= parts.total,
          "--part: found {}, expected I/K, the I-th of K servers, for example 1/2, or I-J/K, several in one", text);
  return parts;
}

std::filesystem::path token_file_of(const ServeOptions& options) {
  return options.token_file.empty() ? server::token_file(process_environment())
                                    : std::filesystem::path(options.token_file);
}

std::shared_ptr<const server::TlsContext> tls_of(const ServeOptions& options) {
  return options.tls_cert.empty() ? nullptr : server::TlsContext::of_server(options.tls_cert, options.tls_key);
}

// Servers that hold the weights.
int run_store(const ServeOptions& options, CommandContext& context) {
  const Parts parts = parse_parts(options.part);
  require(parts.last - parts.first == 1, "--part {}: several parts in one process are for --mode sync", options.part);
  StoreJob job;
  job.token_file = token_file_of(options);
  job.listen = options.listen;
  job.port = options.port;
  job.workers = options.workers;
  job.part = parts.first;
  job.parts = parts.total;
  job.mode = options.mode == "async" ? server::Mode::kAsync : server::Mode::kBounded;
  job.tls = tls_of(options);
  job.state = options.state;
  job.threads = options.threads;
  return serve_store(job, context);
}

// Servers of one job in this process, each with a port, a thread and a connection to every worker of its own.
class SyncServers {
 public:
  SyncServers(const ServeOptions& options, const Parts& parts, CommandContext& context) : context_(context) {
    server::Server::Options server_options;
    server_options.token = server::read_or_create_token(token_file_of(options));
    server_options.listen = options.listen;
    server_options.workers = options.workers;
    server_options.min_workers = options.min_workers;
    server_options.wait = std::chrono::seconds(options.wait_s);
    server_options.parts = parts.total;
    server_options.tls = tls_of(options);
    server_options.say = [&log = context.log](LogLevel level, const std::string& text) {
      log.write(level, "serve: " + text);
    };
    for (int part = parts.first; part < parts.last; ++part) {
      server_options.part = part;
      server_options.port =
          options.port == 0 ? std::uint16_t{0} : static_cast<std::uint16_t>(options.port + part - parts.first);
      servers_.push_back(std::make_unique<server::Server>(server_options));
      addresses_.push_back(fmt::format("{}:{}", options.listen, servers_.back()->port()));
    }
    ends_.resize(servers_.size());
  }

  [[nodiscard]] const std::vector<std::string>& addresses() const { return addresses_; }

  // Until the job's end, or the first signal when nobody has come. Throws Error(kPeerLost) for an end that is none.
  void run() {
    ServerStop stop(context_.stop, context_.log);
    const auto any = [this](bool (server::Server::*is_so)() const) {
      return std::any_of(servers_.begin(), servers_.end(), [&](const auto& server) { return (*server.*is_so)(); });
    };
    while (!has_ended()) {
      if (stop.look(any(&server::Server::has_workers)) != ServerStop::Due::kEnd) {
        continue;
      }
      if (!any(&server::Server::has_begun)) {
        return;
      }
      for (std::size_t i = 0; i < servers_.size(); ++i) {
        servers_[i]->end("the parameter server " + addresses_[i] + " was stopped by a signal");
      }
    }
    for (const std::optional<server::Server::End>& end : ends_) {
      if (!end->orderly) {
        fail(ErrorCode::kPeerLost, "{}", end->cause);
      }
    }
    context_.log.info("serve: all workers have ended");
  }

 private:
  // Whether all have, after a moment. What ended one ends the others, as workers tell them.
  [[nodiscard]] bool has_ended() {
    bool all = true;
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      if (!ends_[i]) {
        ends_[i] = servers_[i]->wait_for_end(all ? kSignalCheck : std::chrono::milliseconds(0));
      }
      all = all && ends_[i];
    }
    return all;
  }

  CommandContext& context_;
  std::vector<std::unique_ptr<server::Server>> servers_;
  std::vector<std::string> addresses_;
  std::vector<std::optional<server::Server::End>> ends_;
};

int run_serve(const ServeOptions& options, CommandContext& context) {
  if (options.mode != "sync") {
    return run_store(options, context);
  }
  require(options.state.empty(),
          "--state: in mode sync servers hold nothing that could be kept; expected --mode bounded "
          "or async");
  require(options.min_workers <= options.workers, "--min-workers: found {}, expected at most --workers, {}",
          options.min_workers, options.workers);
  const Parts parts = parse_parts(options.part);
  require(options.port + parts.last - parts.first <= 65'536, "--port: found {}, but --part {} needs one for each part",
          options.port, options.part);
  context.stop.listen(StopSignal::Second::kIsCounted);
  SyncServers servers(options, parts, context);
  const std::string where = fmt::format("{}", fmt::join(servers.addresses(), ", "));
  context.log.info("serve: part {} for {} worker{} at {}{}, token in {}", options.part, options.workers,
                   options.workers == 1 ? "" : "s", where, options.tls_cert.empty() ? "" : " with TLS",
                   token_file_of(options).string());
  for (const std::string& address : servers.addresses()) {
    print(address + "\n");
  }
  servers.run();
  return kExitDone;
}

}  // namespace

void add_serve(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<ServeOptions>();
  CLI::App* command =
      app.add_subcommand("serve", "Add gradients for workers that have only TCP between them (comm.backend: server)");
  command->add_option("--workers", options->workers, "Workers of the job")->required()->check(CLI::PositiveNumber);
  command->add_option("--port", options->port, "Port to listen on; 0: any that is free")
      ->transform(whole_number())
      ->capture_default_str();
  command->add_option("--listen", options->listen, "Address to listen on; 0.0.0.0: all of this machine's")
      ->capture_default_str();
  command
      ->add_option("--part", options->part,
                   "This is the I-th of K servers, which share the work; I-J/K: the I-th to the J-th, on consecutive "
                   "ports, with "
                   "a thread and a connection to each worker each")
      ->type_name("I/K|I-J/K")
      ->capture_default_str();
  command
      ->add_option(
          "--min-workers", options->min_workers,
          "Go on with fewer workers, a power of two and at least so many, when others are lost and do not come "
          "back within --wait; more are taken in when they come. 0: only with all")
      ->transform(whole_number())
      ->capture_default_str();
  command
      ->add_option("--wait", options->wait_s,
                   "Seconds to wait for a lost worker, or another in its place; 0: the job ends with the first")
      ->transform(whole_number())
      ->capture_default_str();
  command->add_option("--token-file", options->token_file,
                      "The job's secret, made when it is not there; otherwise $LOCKSTEP_TOKEN_FILE or "
                      "~/.lockstep/token");
  CLI::Option* certificate = command->add_option(
      "--tls-cert", options->tls_cert,
      "Encrypt with TLS 1.3: PEM file with the certificate of this server, which workers check by comm.tls_ca");
  CLI::Option* key = command->add_option("--tls-key", options->tls_key, "PEM file with its private key");
  certificate->needs(key);
  key->needs(certificate);
  command
      ->add_option("--mode", options->mode,
                   "What comm.mode workers have; in bounded and async the servers hold the weights and the optimizer")
      ->check(CLI::IsMember({"sync", "bounded", "async"}))
      ->capture_default_str();
  command
      ->add_option("--state", options->state,
                   "bounded, async: folder in which the server keeps what it holds, so that it may be killed and "
                   "started again")
      ->type_name("DIR");
  command->add_option("--threads", options->threads, "bounded, async: threads that update the weights")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer(
      "Serves one job and ends with it: exit code 0 when all workers ended in order, 1 when one was lost, 75 when a\n"
      "signal came while no worker was there and --state has what the server holds.\n"
      "Prints HOST:PORT, a line for each part. Workers need the same token; what they send is authenticated, and "
      "encrypted with --tls-cert "
      "only.\n"
      "Example: lockstep serve --workers 2 --listen 0.0.0.0 &\n"
      "         lockstep train job.yaml --set comm.backend=server --set comm.servers=node01:7070   (on 2 machines)");
  command->callback([options, command, &context] {
    for (const char* const name : {"--min-workers", "--wait"}) {
      require(options->mode == "sync" || command->count(name) == 0,
              "{}: in mode {} nobody is waited for; expected with --mode sync only", name, options->mode);
    }
    require(options->mode != "sync" || command->count("--threads") == 0,
            "--threads: in mode sync each part has a thread; expected with --mode bounded or async only");
    require(command->count("--tls-cert") == 0 || !options->tls_cert.empty(),
            "--tls-cert: found no name, expected a PEM file");
    context.run = [options, &context] { return run_serve(*options, context); };
  });
}

}  // namespace lockstep
