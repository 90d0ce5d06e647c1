// lockstep serve: a parameter server for one job of lockstep train.
#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "comm/server/server.h"
#include "comm/server/tls.h"
#include "comm/server/token_file.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "launcher/store_job.h"

namespace lockstep {
namespace {

constexpr std::chrono::milliseconds kSignalCheck{50};
// Who signals a server most often signals the workers as well, which need it for their last step and save.
constexpr std::chrono::seconds kGrace{30};

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

// "2/3": the second of three, which is part 1 of 3.
std::pair<int, int> parse_part(const std::string& text) {
  int part = 0;
  int parts = 0;
  const char* const end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, part);
  const bool has_both = first.ec == std::errc() && first.ptr != end && *first.ptr == '/';
  const auto second = has_both ? std::from_chars(first.ptr + 1, end, parts) : first;
  require(has_both && second.ec == std::errc() && second.ptr == end && part >= 1 && part <= parts,
          "--part: found {}, expected I/K, the I-th of K servers, for example 1/2", text);
  return {part - 1, parts};
}

// Servers that hold the weights.
std::shared_ptr<const server::TlsContext> tls_of(const ServeOptions& options) {
  return options.tls_cert.empty() ? nullptr : server::TlsContext::of_server(options.tls_cert, options.tls_key);
}

int run_store(const ServeOptions& options, CommandContext& context) {
  const std::filesystem::path token_file = options.token_file.empty() ? server::token_file(process_environment())
                                                                      : std::filesystem::path(options.token_file);
  const auto [part, parts] = parse_part(options.part);
  StoreJob job;
  job.token_file = token_file;
  job.listen = options.listen;
  job.port = options.port;
  job.workers = options.workers;
  job.part = part;
  job.parts = parts;
  job.mode = options.mode == "async" ? server::Mode::kAsync : server::Mode::kBounded;
  job.tls = tls_of(options);
  job.state = options.state;
  job.threads = options.threads;
  return serve_store(job, context);
}

int run_serve(const ServeOptions& options, CommandContext& context) {
  if (options.mode != "sync") {
    return run_store(options, context);
  }
  require(options.state.empty(),
          "--state: in mode sync servers hold nothing that could be kept; expected --mode bounded "
          "or async");
  const std::filesystem::path token_file = options.token_file.empty() ? server::token_file(process_environment())
                                                                      : std::filesystem::path(options.token_file);
  const auto [part, parts] = parse_part(options.part);
  server::Server::Options server_options;
  server_options.token = server::read_or_create_token(token_file);
  server_options.listen = options.listen;
  server_options.port = options.port;
  server_options.workers = options.workers;
  require(options.min_workers <= options.workers, "--min-workers: found {}, expected at most --workers, {}",
          options.min_workers, options.workers);
  server_options.min_workers = options.min_workers;
  server_options.wait = std::chrono::seconds(options.wait_s);
  server_options.part = part;
  server_options.parts = parts;
  server_options.tls = tls_of(options);
  server_options.say = [&log = context.log](LogLevel level, const std::string& text) {
    log.write(level, "serve: " + text);
  };
  context.stop.listen();
  server::Server server(std::move(server_options));
  const std::string address = fmt::format("{}:{}", options.listen, server.port());
  context.log.info("serve: part {} for {} worker{} at {}{}, token in {}", options.part, options.workers,
                   options.workers == 1 ? "" : "s", address, options.tls_cert.empty() ? "" : " with TLS",
                   token_file.string());
  print(address + "\n");

  std::optional<server::Server::End> end;
  std::optional<std::chrono::steady_clock::time_point> signalled;
  while (!end) {
    end = server.wait_for_end(kSignalCheck);
    if (end || !context.stop.requested()) {
      continue;
    }
    if (!server.has_begun()) {
      return kExitDone;
    }
    const auto now = std::chrono::steady_clock::now();
    if (!signalled) {
      signalled = now;
      context.log.info("serve: signal {}; the workers have {} s to save and end (a second signal ends the job at once)",
                       context.stop.number(), kGrace.count());
    }
    if (context.stop.repeated() || now - *signalled >= kGrace) {
      server.end("the parameter server " + address + " was stopped by a signal");
    }
  }
  if (!end->orderly) {
    fail(ErrorCode::kPeerLost, "{}", end->cause);
  }
  context.log.info("serve: all workers have ended");
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
  command->add_option("--part", options->part, "This is the I-th of K servers, which share the work")
      ->type_name("I/K")
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
      "Serves one job and ends with it: exit code 0 when all workers ended in order, 1 when one was lost.\n"
      "Prints HOST:PORT. Workers need the same token; what they send is authenticated, and encrypted with --tls-cert "
      "only.\n"
      "Example: lockstep serve --workers 2 --listen 0.0.0.0 &\n"
      "         lockstep train job.yaml --set comm.backend=server --set comm.servers=node01:7070   (on 2 machines)");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_serve(*options, context); }; });
}

}  // namespace lockstep
