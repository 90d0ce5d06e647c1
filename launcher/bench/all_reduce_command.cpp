#include "launcher/bench/all_reduce_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/server/bare_stream.h"
#include "launcher/bench/all_reduce_bench.h"
#include "launcher/bench/measure.h"
#include "launcher/bench/server_workers.h"
#include "launcher/bench/shared_sum.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "ops/backend.h"
#include "trainer/agreement.h"
#include "trainer/config.h"
#include "trainer/device.h"
#include "trainer/device_communicator.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

struct AllReduceOptions {
  std::uint64_t min_kib = 4;
  std::uint64_t max_mib = 256;
  int ranks_per_node = 0;
  int rounds = 10;
  bool json = false;
  std::string backend = "auto";
  std::string device = "cpu";
  bool share = false;
  std::string determinism = "elastic";
  std::string wire = "fp32";
  bool tcp_only = false;
  std::string servers;
  std::string tls_ca;
  std::string bare_servers;  // of those that run_server_workers() starts
  int workers = 2;
  int own_servers = 1;
};

// What TCP alone takes to bring a buffer to the servers and as much back, on the slowest worker.
class BareStreamSum final : public Yardstick {
 public:
  BareStreamSum(const std::string& servers, std::uint64_t max_bytes, Communicator& communicator)
      : stream_(server::parse_addresses(servers)), data_(max_bytes), communicator_(communicator) {}

  [[nodiscard]] double time_sum(std::size_t count, int repeats) override {
    communicator_.barrier();
    const double begin_ms = now_ms();
    for (int i = 0; i < repeats; ++i) {
      stream_.exchange(std::span(data_).first(count * sizeof(float)));
    }
    return max_over_ranks(communicator_, (now_ms() - begin_ms) / repeats);
  }

 private:
  server::BareStream stream_;
  std::vector<std::byte> data_;
  Communicator& communicator_;
};

// What a GPU takes to copy as many bytes within its memory, on the slowest rank.
class DeviceCopy final : public Yardstick {
 public:
  DeviceCopy(Backend& backend, std::uint64_t max_bytes, Communicator& communicator)
      : backend_(backend),
        from_(backend.allocate(max_bytes)),
        to_(backend.allocate(max_bytes)),
        communicator_(communicator) {}

  [[nodiscard]] double time_sum(std::size_t count, int repeats) override {
    communicator_.barrier();
    const double begin_ms = now_ms();
    for (int i = 0; i < repeats; ++i) {
      backend_.convert({from_.data(), count, DType::kF32, backend_.device()},
                       {to_.data(), count, DType::kF32, backend_.device()});
    }
    backend_.synchronize();
    return max_over_ranks(communicator_, (now_ms() - begin_ms) / repeats);
  }

 private:
  Backend& backend_;
  Buffer from_;
  Buffer to_;
  Communicator& communicator_;
};

struct Ceiling {
  std::unique_ptr<Yardstick> bare = {};  // where there is one
  const char* name = "bare sum";
  const char* library = "MPI_Allreduce";
  std::string note = {};
};

// `backend`: of a GPU, or null.
Ceiling ceiling_of(const AllReduceOptions& options, std::uint64_t max_bytes, Backend* backend,
                   Communicator& communicator) {
  if (backend != nullptr) {
    return {.bare = std::make_unique<DeviceCopy>(*backend, max_bytes, communicator),
            .name = "device copy",
            .library = "ncclAllReduce",
            .note = "GB/s; the ceiling is a copy of as many bytes within a GPU's memory"};
  }
  if (options.backend == "server") {
    if (options.bare_servers.empty()) {
      return {.name = "bare stream", .note = "GB/s; without --servers the bare TCP stream stands beside it"};
    }
    return {.bare = std::make_unique<BareStreamSum>(options.bare_servers, max_bytes, communicator),
            .name = "bare stream",
            .note = "GB/s; the ceiling is a bare TCP stream between the same processes, the same bytes both ways"};
  }
  Ceiling ceiling = {.note = "GB/s; the ceiling is the bare sum in shared memory, of 2, 4 or 8 ranks of one node"};
  try {
    if (SharedSum::is_possible(communicator)) {
      ceiling.bare = std::make_unique<SharedSum>(communicator, max_bytes / sizeof(float));
    }
  } catch (const AgreedError& error) {
    ceiling.note = fmt::format("without the bare sum: {}", error.what());
  }
  return ceiling;
}

// The conventions of nccl-tests: what a rank sums in a second, and what then crosses the bus.
class Table {
 public:
  Table(const std::vector<AllReduceBenchRow>& rows, const Ceiling& ceiling, const Communicator& communicator)
      : rows_(rows), ceiling_(ceiling), communicator_(communicator) {
    const int world = communicator.world_size();
    bus_ = 2.0 * (world - 1) / world;
  }

  [[nodiscard]] Json json() const {
    Json list = Json::array();
    for (const AllReduceBenchRow& row : rows_) {
      const double speed = speed_of(row, row.lockstep_ms);
      Json json = {{"bytes", row.size_bytes},
                   {"us", row.lockstep_ms * 1e3},
                   {"algbw_gb_per_s", speed},
                   {"busbw_gb_per_s", speed * bus_}};
      if (row.library_ms) {
        json["library_algbw_gb_per_s"] = speed_of(row, *row.library_ms);
        json["of_library"] = *row.of_library;
      }
      if (row.bare_ms) {
        json["bare_algbw_gb_per_s"] = speed_of(row, *row.bare_ms);
        json["of_ceiling"] = *row.of_ceiling;
      }
      list.push_back(std::move(json));
    }
    return {{"bench", "allreduce"},
            {"world", communicator_.world_size()},
            {"path", communicator_.description()},
            {"sizes", list}};
  }

  [[nodiscard]] std::string text() const {
    const bool has_library = rows_.front().library_ms.has_value();
    std::string text =
        fmt::format("allreduce: {} ranks ({}), sums of f32\n{:>10} {:>10} {:>8} {:>8}", communicator_.world_size(),
                    communicator_.description(), "bytes", "us", "algbw", "busbw");
    text += has_library ? fmt::format(" {:>14}", ceiling_.library) : "";
    text += ceiling_.bare ? fmt::format(" {:>11} {:>11}", ceiling_.name, "of ceiling") : "";
    text += "\n";
    for (const AllReduceBenchRow& row : rows_) {
      const double speed = speed_of(row, row.lockstep_ms);
      text +=
          fmt::format("{:>10} {:>10.1f} {:>8.2f} {:>8.2f}", row.size_bytes, row.lockstep_ms * 1e3, speed, speed * bus_);
      text += row.library_ms ? fmt::format(" {:>14.2f}", speed_of(row, *row.library_ms)) : "";
      text +=
          row.bare_ms ? fmt::format(" {:>11.2f} {:>9.0f} %", speed_of(row, *row.bare_ms), 100 * *row.of_ceiling) : "";
      text += "\n";
    }
    return text + ceiling_.note + "\n";
  }

 private:
  [[nodiscard]] static double speed_of(const AllReduceBenchRow& row, double ms) {
    constexpr double kGiga = 1e9;
    return static_cast<double>(row.size_bytes) / (ms * 1e-3) / kGiga;
  }

  const std::vector<AllReduceBenchRow>& rows_;
  const Ceiling& ceiling_;
  const Communicator& communicator_;
  double bus_ = 1;
};

int start_workers(const AllReduceOptions& options) {
  ServerWorkersPlan plan{.workers = options.workers, .servers = options.own_servers, .command = {}};
  plan.command = {std::filesystem::read_symlink("/proc/self/exe").string(),
                  "bench",
                  "allreduce",
                  "--backend",
                  "server",
                  "--min-kib",
                  std::to_string(options.min_kib),
                  "--max-mib",
                  std::to_string(options.max_mib),
                  "--rounds",
                  std::to_string(options.rounds),
                  "--wire",
                  options.wire};
  if (options.json) {
    plan.command.emplace_back("--json");
  }
  if (options.tcp_only) {
    plan.command.emplace_back("--tcp-only");
  }
  return run_server_workers(plan);
}

void bench_sums(const AllReduceOptions& options, const BufferView& data, Backend* gpu, Communicator& communicator) {
  const Ceiling ceiling = ceiling_of(options, data.size_bytes(), gpu, communicator);
  const auto rows = bench_all_reduce(data, options.min_kib << 10, options.rounds, ceiling.bare.get(), communicator);
  if (communicator.rank() == 0) {
    const Table table(rows, ceiling, communicator);
    print(options.json ? table.json().dump() + "\n" : table.text());
  }
}

void bench_on_gpus(const AllReduceOptions& options, Communicator& host) {
  Config config;
  config.device = {.kind = DeviceWish::kCuda, .share = options.share};
  config.comm.backend = options.backend;
  config.comm.ranks_per_node = options.ranks_per_node;
  config.train.determinism = options.determinism == "fixed" ? Determinism::kFixed : Determinism::kElastic;
  const DeviceChoice device = choose_device(config.device, Precision::kFp32, host);
  std::unique_ptr<Backend> backend;
  run_agreed(host, [&] { backend = make_backend(device, 1); });
  {
    const auto communicator = make_device_communicator(config, device, host, *backend);
    const std::uint64_t bytes = options.max_mib << 20;
    const Buffer memory = backend->allocate(bytes);
    bench_sums(options, {memory.data(), bytes / sizeof(float), DType::kF32, backend->device()}, backend.get(),
               *communicator);
    communicator->close();
  }
}

int run_all_reduce(const AllReduceOptions& options) {
  require(options.backend == "server" || options.servers.empty(), "--servers: expected with --backend server only");
  require(options.tls_ca.empty() || !options.servers.empty(), "--tls-ca: expected with --servers only");
  const std::uint64_t min_bytes = options.min_kib << 10;
  const std::uint64_t max_bytes = options.max_mib << 20;
  require(min_bytes <= max_bytes, "--min-kib: found {}, expected at most --max-mib {}", options.min_kib,
          options.max_mib);
  if (options.backend == "server" && options.servers.empty()) {
    return start_workers(options);
  }
  const bool on_gpu = options.device == "cuda";
  require(on_gpu || (options.backend != "nccl" && !options.share),
          "--backend nccl, --share: expected with --device cuda only");
  require(!on_gpu || options.backend != "server", "--device cuda: expected without --backend server");
  CommOptions comm;
  comm.backend = options.backend == "nccl" ? "auto" : options.backend;
  comm.ranks_per_node = options.ranks_per_node;
  comm.servers = options.servers;
  comm.wire = options.wire;
  comm.shared_memory = !options.tcp_only;
  comm.tls_ca = options.tls_ca;
  const auto communicator = make_communicator(comm);
  require(communicator->world_size() > 1,
          "one rank has nothing to sum with; expected mpirun -np 2 lockstep bench allreduce");
  if (on_gpu) {
    bench_on_gpus(options, *communicator);
  } else {
    const Buffer memory = communicator->allocate(max_bytes);
    const std::span<float> data = memory.as<float>(max_bytes / sizeof(float));
    std::fill(data.begin(), data.end(), 0.0F);
    bench_sums(options, view_of(data), nullptr, *communicator);
  }
  communicator->close();
  return kExitDone;
}

}  // namespace

void add_all_reduce_bench(CLI::App& bench, CommandContext& context) {
  const auto options = std::make_shared<AllReduceOptions>();
  CLI::App* command = bench.add_subcommand(
      "allreduce",
      "Sums over the ranks, beside MPI_Allreduce and the machine's limit: a bare sum, or a bare TCP stream");
  command->add_option("--min-kib", options->min_kib, "The smallest sum; each further one is four times as large")
      ->check(CLI::Range(1, 4 << 20))
      ->capture_default_str();
  command->add_option("--max-mib", options->max_mib, "The largest sum")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--ranks-per-node", options->ranks_per_node,
                   "Take so many ranks for a node each, and so sum by messages between them; 0: as they are")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--backend", options->backend, "server: through parameter servers; nccl: between GPUs")
      ->check(CLI::IsMember({"auto", "self", "mpi", "nccl", "server"}))
      ->capture_default_str();
  command->add_option("--device", options->device, "Where what is summed lies; cuda: a GPU for each rank")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_flag("--share", options->share, "Let several ranks use one GPU, and sum in host memory");
  command->add_option("--determinism", options->determinism, "How GPUs sum, as train.determinism")
      ->check(CLI::IsMember({"elastic", "fixed"}))
      ->capture_default_str();
  command->add_option("--wire", options->wire, "How the numbers travel to servers, as comm.wire")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command->add_flag("--tcp-only", options->tcp_only,
                    "Let the numbers travel to servers on this machine, too, as without comm.shared_memory");
  command->add_option("--servers", options->servers,
                      "HOST:PORT,... of parameter servers that run, to which this is one worker; without it, servers "
                      "and workers are started here");
  command->add_option("--tls-ca", options->tls_ca,
                      "Whom to trust with encrypted connections to --servers, as comm.tls_ca");
  command->add_option("--workers", options->workers, "Workers to start beside own servers")
      ->check(CLI::Range(2, 64))
      ->capture_default_str();
  command->add_option("--own-servers", options->own_servers, "Parameter servers to start")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--bare-servers", options->bare_servers)->group("");  // for workers that this command starts
  command->add_option("--rounds", options->rounds, "Measurements of each size; medians are printed")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([options, &context] { context.run = [options] { return run_all_reduce(*options); }; });
}

}  // namespace lockstep
