// lockstep launch: starts the workers of a job, here, on other hosts or inside a Slurm allocation, and keeps it going.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <bit>
#include <csignal>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cuda/devices.h"
#include "base/error.h"
#include "base/file.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/job/attempts.h"
#include "launcher/job/child.h"
#include "launcher/job/slurm.h"
#include "launcher/job/supervisor.h"
#include "launcher/job_config.h"
#include "launcher/output.h"
#include "trainer/config.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

constexpr int kSubmitDeadlineMs = 60'000;

struct LaunchOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  std::string backend;  // empty: as the configuration says
  int servers = 0;      // 0: as many as the backend needs
  int ranks = 0;        // 0: as many as there is room for
  std::string tls_cert;
  std::string tls_key;
  std::string hosts;
  bool has_hosts = false;  // an empty --hosts, of a variable that is not set, is none to be passed over
  std::string ssh;
  std::string starter = "auto";
  int max_restarts = 100;
  bool dry_run = false;

  bool slurm = false;
  BatchOptions batch;
};

// With what flags say about it.
std::vector<std::string> overrides_of(const LaunchOptions& options) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.backend.empty()) {
    overrides.push_back("comm.backend=" + options.backend);
  }
  return overrides;
}

std::string own_program() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

// lockstep train CONFIG --set ...
std::vector<std::string> worker_command(const LaunchOptions& options) {
  std::vector<std::string> command = {own_program(), "train", options.config};
  for (const std::string& override_ : overrides_of(options)) {
    command.insert(command.end(), {"--set", override_});
  }
  return command;
}

// A connection a rank, and some files a rank.
void raise_limit_of_open_files() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

int usable_gpus(const Config& config) {
  if (config.device.kind == DeviceWish::kCpu) {
    return 0;
  }
  int usable = 0;
  for (const cuda::DeviceInfo& device : cuda::list_devices().devices) {
    usable += device.problem.empty() ? 1 : 0;
  }
  return usable;
}

// The largest power of two that there is room for.
int default_ranks(const Config& config, const std::vector<Host>& hosts) {
  int room = hosts.empty() ? std::max(1, usable_gpus(config)) : 0;
  for (const Host& host : hosts) {
    room += host.slots;
  }
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(room)));
}

// How the ranks come up: through MPI, by whose starter.
void choose_starter(const LaunchOptions& options, LaunchRequest& request) {
  const bool with_srun = request.slurm && !options.has_hosts && options.starter != "mpirun";
  require(options.starter != "srun" || with_srun, "--starter srun: this is no Slurm allocation, or --hosts is given");
  if (with_srun && (options.starter == "srun" || srun_has_pmix())) {
    request.starter = JobStarter::kSrun;
  } else {
    const ChildResult version = run_child({{"mpirun", "--version"}}, 10'000);
    request.mpirun_major = parse_mpirun_version(version.output);
  }
}

// What needs no look at the machines, so that it is known of a batch job, too, before it is submitted.
void check_options(const LaunchOptions& options, const Config& config) {
  require(options.ranks == 0 || std::has_single_bit(static_cast<unsigned>(options.ranks)),
          "--ranks {}: expected a power of two, so that the run has the same bits on any number of them",
          options.ranks);
  if (config.comm.backend != "server") {
    require(options.tls_cert.empty(), "--tls-cert: comm.backend is {}, which has no servers", config.comm.backend);
    require(options.servers == 0, "--servers {}: comm.backend is {}, which has none", options.servers,
            config.comm.backend);
    return;
  }
  require(
      options.starter == "auto",
      "--starter {}: with comm.backend: server each rank is started by itself, on other hosts by ssh or, in a Slurm "
      "allocation, by srun",
      options.starter);
  const std::string& known = config.comm.servers;
  require(known.empty(), "comm.servers: found {}, expected nothing: lockstep launch starts the servers itself", known);
  require(
      options.tls_cert.empty() == config.comm.tls_ca.empty(),
      "--tls-cert and comm.tls_ca: found only one of them; the servers need a certificate, and the workers to know it");
}

// What sbatch would take, and the job would then not do.
void check_batch(const LaunchOptions& options) {
  const BatchOptions& batch = options.batch;
  const std::int64_t room = std::int64_t{batch.nodes} * batch.ranks_per_node;
  require(options.ranks <= room, "--ranks {}: the nodes take {} (--nodes {}, --ranks-per-node {})", options.ranks, room,
          batch.nodes, batch.ranks_per_node);
  const auto limit_s = parse_time_limit(batch.time);
  require(!limit_s || batch.signal_s < *limit_s,
          "--signal {}: --time {} is {} s, so the job would save and stop as soon as it has started", batch.signal_s,
          batch.time, limit_s.value_or(0));
}

// The configuration as it is for the whole job.
struct LaunchedConfig {
  std::string text;
  std::string variable;  // which hands it to workers
  Config config;
};

LaunchedConfig parse(const LaunchOptions& options, std::string text) {
  Config config = parse_job_config(text, options.config, overrides_of(options), 0).config;
  std::string variable = to_config_variable(text, options.config);
  return {std::move(text), std::move(variable), std::move(config)};
}

// A Slurm job that was put back into the queue goes on with what it began with.
LaunchedConfig find_config(const LaunchOptions& options, const std::optional<SlurmJob>& slurm, Log& log) {
  LaunchedConfig found = parse(options, read_job_config(options.config));
  const std::filesystem::path run = run_folder(found.config);
  const std::filesystem::path kept = launched_config_file(run);
  if (!opened_before(slurm, run) || !std::filesystem::exists(kept)) {
    return found;
  }
  std::string text = read_file(kept);
  if (text != found.text) {
    log.info("launch: {} has changed; going on with {}, as it was when the job began", options.config, kept.string());
    found = parse(options, std::move(text));
  }
  return found;
}

LaunchRequest request_of(const LaunchOptions& options, const LaunchedConfig& launched,
                         const std::optional<SlurmJob>& slurm) {
  const Config& config = launched.config;
  LaunchRequest request;
  request.config = config;
  request.config_variable = launched.variable;
  request.program = own_program();
  request.worker = worker_command(options);
  request.resume = options.resume;
  request.ssh = options.ssh;
  request.max_restarts = options.max_restarts;
  request.slurm = slurm;
  if (options.has_hosts) {
    request.hosts = parse_hosts(options.hosts);
  } else if (request.slurm) {
    request.hosts = request.slurm->hosts;
    request.hosts_are_slurms = true;
  }
  if (config.comm.backend == "server") {
    request.servers = std::max(1, options.servers);
    request.tls_cert = options.tls_cert;
    request.tls_key = options.tls_key;
  } else {
    choose_starter(options, request);
  }
  request.ranks = options.ranks > 0 ? options.ranks : default_ranks(config, request.hosts);
  if (!request.hosts.empty()) {
    const int room = std::accumulate(request.hosts.begin(), request.hosts.end(), 0,
                                     [](int sum, const Host& host) { return sum + host.slots; });
    require(request.ranks <= room, "--ranks {}: the hosts take {} (NAME:SLOTS says how many each does)", request.ranks,
            room);
  }
  return request;
}

// The script is left beside the run, so that it can be read, changed and submitted again.
int submit(const LaunchOptions& options, const LaunchedConfig& launched, Log& log) {
  const Config& config = launched.config;
  require(!options.has_hosts && options.ssh.empty(), "--hosts and --ssh: in a Slurm job its own hosts are used");
  check_batch(options);
  const std::filesystem::path run = std::filesystem::absolute(run_folder(config));
  BatchOptions batch = options.batch;
  batch.name = config.run.name;
  batch.folder = std::filesystem::current_path().string();
  std::string folder = run.string();
  for (std::size_t at = folder.find('%'); at != std::string::npos; at = folder.find('%', at + 2)) {
    folder.insert(at, 1, '%');
  }
  batch.output = folder + "/slurm-%j.log";
  // The job starts from a copy, which does not have the name that the run's comes from where it has no other.
  const std::filesystem::path copy = run / "job.yaml";
  batch.command = {own_program(), "launch", options.dry_run ? options.config : copy.string()};
  for (const std::string& override_ : overrides_of(options)) {
    batch.command.insert(batch.command.end(), {"--set", override_});
  }
  batch.command.insert(batch.command.end(), {"--set", "run.name=" + config.run.name});
  batch.command.insert(batch.command.end(), {"--resume", options.resume, "--starter", options.starter, "--max-restarts",
                                             std::to_string(options.max_restarts)});
  if (options.servers > 0) {
    batch.command.insert(batch.command.end(), {"--servers", std::to_string(options.servers)});
  }
  if (!options.tls_cert.empty()) {
    batch.command.insert(batch.command.end(), {"--tls-cert", options.tls_cert, "--tls-key", options.tls_key});
  }
  if (options.ranks > 0) {
    batch.command.insert(batch.command.end(), {"--ranks", std::to_string(options.ranks)});
  }
  const std::string script = batch_script(batch);
  if (options.dry_run) {
    print(script);
    return kExitDone;
  }
  std::filesystem::create_directories(run);
  const std::filesystem::path path = batch_file(run);
  write_file_atomic(copy, launched.text);
  write_file_atomic(path, script);
  const ChildResult result = run_child({{"sbatch", path.string()}}, kSubmitDeadlineMs);
  if (result.timed_out || result.exit_code != 0) {
    fail(ErrorCode::kIo, "sbatch {}: {}", path.string(),
         result.timed_out ? std::string("no answer") : result.output.substr(0, result.output.find('\n')));
  }
  print(result.output);
  log.info("launch: output goes to {}; lockstep status {} tells how it is doing", batch.output, run.string());
  return kExitDone;
}

int run_launch(const LaunchOptions& options, CommandContext& context) {
  require(context.ranks.starter == Starter::kAlone || process_environment()("SLURM_JOB_ID"),
          "launch was started by {}; it starts the ranks itself: lockstep launch {}",
          context.ranks.starter == Starter::kSrun ? "srun" : "mpirun", options.config);
  const std::optional<SlurmJob> slurm = find_slurm_job(process_environment());
  const LaunchedConfig launched = find_config(options, slurm, context.log);
  check_options(options, launched.config);
  if (options.slurm) {
    require(!slurm, "--slurm: this is a Slurm job already; launch without --slurm");
    return submit(options, launched, context.log);
  }
  if (options.dry_run) {
    for (const ChildCommand& command : first_commands(request_of(options, launched, slurm))) {
      print(shell_line(command) + "\n");
    }
    return kExitDone;
  }
  context.stop.listen(StopSignal::Second::kIsCounted);
  // A terminal that is gone is no reason to end a job.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGHUP, SIG_IGN);
  std::signal(SIGCHLD, SIG_DFL);  // ignored by whoever started this, exit codes could not be read
  raise_limit_of_open_files();
  const LaunchRequest request = request_of(options, launched, slurm);
  return Supervisor(request, context.stop, context.log).run();
}

void add_slurm_options(CLI::App& command, const std::shared_ptr<LaunchOptions>& options) {
  BatchOptions& batch = options->batch;
  const std::string group = "Slurm (with --slurm)";
  CLI::Option* slurm =
      command.add_flag("--slurm", options->slurm, "Write a batch script from these options and submit it")
          ->group(group);
  command.add_option("--nodes", batch.nodes, "Nodes")->check(above_zero())->needs(slurm)->group(group);
  command.add_option("--ranks-per-node", batch.ranks_per_node, "Ranks on each node, one a GPU where there are some")
      ->check(above_zero())
      ->needs(slurm)
      ->group(group);
  command.add_option("--cpus-per-rank", batch.cpus_per_rank, "Cores of each rank")
      ->check(above_zero())
      ->needs(slurm)
      ->group(group);
  command.add_option("--gpus-per-node", batch.gpus_per_node, "GPUs of each node")
      ->check(above_zero())
      ->needs(slurm)
      ->group(group);
  command.add_option("--time", batch.time, "Time limit, for example 4:00:00; the job goes on in the next one")
      ->needs(slurm)
      ->group(group);
  command.add_option("--partition", batch.partition, "Partition")->needs(slurm)->group(group);
  command.add_option("--account", batch.account, "Account that pays")->needs(slurm)->group(group);
  command.add_option("--signal", batch.signal_s, "Seconds before the time limit at which the job saves and stops")
      ->check(CLI::Range(1, kMostSignalSeconds))
      ->capture_default_str()
      ->needs(slurm)
      ->group(group);
}

}  // namespace

void add_launch(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<LaunchOptions>();
  CLI::App* command = app.add_subcommand(
      "launch",
      "Start a job's ranks here, on other hosts or in Slurm, watch them, and start them again when one fails");
  command->add_option("CONFIG", options->config, "YAML file, as for lockstep train")->required();
  command->add_option("--set", options->overrides, "Override a key, for example --set train.steps=100; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command
      ->add_option("--ranks", options->ranks,
                   "A power of two; otherwise as many as there are GPUs, slots of hosts, or tasks in Slurm")
      ->check(above_zero());
  command->add_option("--backend", options->backend, "The same as --set comm.backend=...; server: without MPI")
      ->check(CLI::IsMember({"auto", "mpi", "nccl", "server"}));
  command
      ->add_option("--servers", options->servers,
                   "With comm.backend: server, parameter servers that are started for the ranks, on the first hosts; "
                   "otherwise 1")
      ->check(above_zero());
  CLI::Option* certificate = command->add_option("--tls-cert", options->tls_cert,
                                                 "Of the parameter servers, as for lockstep serve, on every host");
  CLI::Option* key = command->add_option("--tls-key", options->tls_key, "PEM file with its private key");
  certificate->needs(key);
  key->needs(certificate);
  CLI::Option* hosts =
      command
          ->add_option("--hosts", options->hosts, "Hosts and how many ranks each takes, or a file with a line for each")
          ->type_name("a:2,b:2|FILE");
  command->add_option("--ssh", options->ssh, "Program that runs a command on another host: PROGRAM HOST COMMAND")
      ->type_name("PROGRAM");
  command->add_option("--max-restarts", options->max_restarts, "Starts after failures, at most")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--resume", options->resume, "Of the first start, as for lockstep train")
      ->type_name("auto|none|DIR")
      ->capture_default_str();
  command->add_option("--starter", options->starter, "What starts the ranks; auto: srun in Slurm where it has PMIx")
      ->check(CLI::IsMember({"auto", "mpirun", "srun"}))
      ->capture_default_str();
  command->add_flag("--dry-run", options->dry_run, "Print the commands, or with --slurm the batch script, and stop");
  add_slurm_options(*command, options);
  command->footer(
      "A rank that dies, hangs or is cut off is named within comm.silence_s seconds, and the job starts again from "
      "the\n"
      "newest checkpoint on the hosts that answer: on a power of two of ranks, with the same bits. Ctrl-C saves and\n"
      "stops (exit code 75); a second one stops at once. In a Slurm batch job it saves before the time limit or a\n"
      "preemption ends it, and puts the job back into the queue.\n"
      "With --backend server no MPI is needed: parameter servers and ranks are started one by one, by ssh where there\n"
      "are hosts, and each that dies is started again by itself.\n"
      "What each rank says goes to RUN/logs/rank-00000.log; RUN/attempts.jsonl lists starts and causes.\n"
      "Example: lockstep launch examples/shakespeare/shakespeare.yaml --ranks 2");
  command->callback([options, hosts, &context] {
    options->has_hosts = hosts->count() > 0;
    context.run = [options, &context] { return run_launch(*options, context); };
  });
}

}  // namespace lockstep
