// lockstep bench: what this machine can do, and how much of it Lockstep uses.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "comm/communicator.h"
#include "launcher/bench/all_reduce_command.h"
#include "launcher/bench/checkpoint_bench.h"
#include "launcher/bench/gemm_bench.h"
#include "launcher/bench/kernel_bench.h"
#include "launcher/bench/loader_bench.h"
#include "launcher/bench/measure.h"
#include "launcher/bench/step_bench.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "launcher/signals.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::string config;
  std::string device;
  std::vector<std::string> overrides;
  int rounds = 10;
  bool json = false;
};

// What was measured, once for programs and once for people.
struct Figures {
  Json json;
  std::string text;
};

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr double kMega = 1e6;

Json describe(const BenchModel& model, const Communicator& communicator) {
  const Config& config = model.config;
  return {{"world", communicator.world_size()},
          {"threads", config.train.threads},
          {"precision", name_of(config.train.precision)},
          {"layers", config.model.layers},
          {"width", config.model.width},
          {"vocab", config.model.vocab},
          {"micro_batches", config.train.micro_batches},
          {"micro_batch_size", config.train.micro_batch_size},
          {"sequence", config.data.sequence},
          {"recompute", name_of(config.train.recompute)},
          {"zero", config.comm.zero}};
}

std::string headline(const char* what, const BenchModel& model, const Communicator& communicator) {
  const Config& config = model.config;
  return fmt::format(
      "{}: {} rank{} x {} thread{}, {} layers of width {}, {} micro-batches of {} x {} tokens in {}{}{}\n", what,
      communicator.world_size(), communicator.world_size() == 1 ? "" : "s", config.train.threads,
      config.train.threads == 1 ? "" : "s", config.model.layers, config.model.width, config.train.micro_batches,
      config.train.micro_batch_size, config.data.sequence, name_of(config.train.precision),
      config.comm.zero == 0 ? "" : ", comm.zero 1",
      config.train.recompute == Recompute::kNone ? "" : fmt::format(", recompute {}", name_of(config.train.recompute)));
}

Figures measure_gemm(const BenchModel& model, const BenchOptions& options, Communicator& communicator) {
  const GemmBenchResult result = bench_gemm(model, options.rounds, communicator);
  Figures figures;
  figures.text = headline("gemm", model, communicator);
  figures.text += fmt::format("{:>6} {:>6} {:>6}  {:<18} {:>6} {:>10}  {}\n", "m", "n", "k", "pass", "calls", "GFLOP/s",
                              "of ceiling");
  Json rows = Json::array();
  for (const GemmBenchRow& row : result.rows) {
    const GemmCalls& shape = row.shape;
    figures.text +=
        fmt::format("{:>6} {:>6} {:>6}  {:<18} {:>6} {:>10.1f}  {:>8.0f} %\n", shape.m(), shape.n(), shape.k(),
                    std::string(name_of(shape.pass)) + (shape.gemm.accumulate ? " +=" : "") +
                        (shape.gemm.epilogue == Epilogue::kNone ? "" : ", gelu"),
                    shape.calls, row.flop_per_s / kGiga, 100 * row.of_ceiling);
    rows.push_back({{"m", shape.m()},
                    {"n", shape.n()},
                    {"k", shape.k()},
                    {"pass", name_of(shape.pass)},
                    {"accumulate", shape.gemm.accumulate},
                    {"head", shape.is_head},
                    {"calls", shape.calls},
                    {"gflop_per_s", row.flop_per_s / kGiga},
                    {"of_ceiling", row.of_ceiling}});
  }
  figures.text += fmt::format("all products of a step: {:.0f} % of the ceiling, {:.1f} GFLOP/s\n",
                              100 * result.of_ceiling, result.ceiling_flop_per_s / kGiga);
  figures.json = describe(model, communicator);
  figures.json["ceiling_gflop_per_s"] = result.ceiling_flop_per_s / kGiga;
  figures.json["of_ceiling"] = result.of_ceiling;
  figures.json["products"] = rows;
  return figures;
}

Figures measure_step(const BenchModel& model, const BenchOptions& options, Communicator& communicator) {
  const StepBenchResult result = bench_step(model, options.rounds, communicator);
  Figures figures;
  figures.text = headline("step", model, communicator);
  figures.text +=
      fmt::format("{:.1f} ms a step, {} tokens/s: {:.1f} GFLOP/s of the model, {:.0f} % of the ceiling, {:.1f}\n",
                  result.step_ms, format_count(result.tokens_per_s), result.flop_per_s / kGiga, 100 * result.of_ceiling,
                  result.ceiling_flop_per_s / kGiga);
  double total_ms = 0;
  for (const auto& [name, ms] : result.parts) {
    total_ms += ms;
  }
  Json parts = Json::array();
  for (const auto& [name, ms] : result.parts) {
    figures.text += fmt::format("  {:<24} {:>9.2f} ms  {:>5.1f} %\n", name, ms, 100 * ms / total_ms);
    parts.push_back({{"name", name}, {"ms", ms}, {"share", ms / total_ms}});
  }
  const double memory = *std::max_element(result.resident_bytes.begin(), result.resident_bytes.end());
  figures.text += fmt::format("products of the layers: {:.1f} GFLOP/s on rank 0; {} of memory a rank\n",
                              result.gemm_flop_per_s / kGiga, format_bytes(static_cast<std::uint64_t>(memory)));
  if (model.device.device.kind == DeviceKind::kCuda) {
    const Config& config = model.config;
    const std::string device = name_of(model.device.device);
    const double peak =
        communicator.world_size() * stated_peak_flop_per_s(device, dtype_of(config.train.precision), model.device.tf32);
    figures.text +=
        fmt::format("{}: {} of its memory", device, format_bytes(static_cast<std::uint64_t>(result.device_bytes)));
    figures.text +=
        peak > 0 ? fmt::format(", MFU {:.1f} % of {:.0f} TFLOP/s\n", 100 * result.flop_per_s / peak, peak / kTera)
                 : "\n";
    figures.json["device"] = device;
    figures.json["device_bytes"] = result.device_bytes;
    if (peak > 0) {
      figures.json["mfu"] = result.flop_per_s / peak;
    }
  }
  figures.json.update(describe(model, communicator));
  figures.json.update({{"step_ms", result.step_ms},
                       {"tokens_per_s", result.tokens_per_s},
                       {"gflop_per_s", result.flop_per_s / kGiga},
                       {"ceiling_gflop_per_s", result.ceiling_flop_per_s / kGiga},
                       {"of_ceiling", result.of_ceiling},
                       {"parts", parts},
                       {"gemm_gflop_per_s", result.gemm_flop_per_s / kGiga},
                       {"resident_bytes", result.resident_bytes}});
  return figures;
}

Figures measure_memory(const BenchModel& model, const BenchOptions& options, Communicator& communicator) {
  const MemoryBenchResult result = bench_memory(model, options.rounds, communicator);
  Figures figures;
  figures.text = headline("memory", model, communicator);
  figures.text += fmt::format("{:<20} {:>10} {:>10}  {}\n", "kernel", "MB", "GB/s", "of ceiling");
  Json rows = Json::array();
  for (const MemoryBenchRow& row : result.rows) {
    figures.text += fmt::format("{:<20} {:>10.1f} {:>10.1f}  {:>8.0f} %\n", row.name, row.bytes / kMega,
                                row.bytes_per_s / kGiga, 100 * row.of_ceiling);
    rows.push_back({{"kernel", row.name},
                    {"bytes", row.bytes},
                    {"gb_per_s", row.bytes_per_s / kGiga},
                    {"of_ceiling", row.of_ceiling}});
  }
  figures.text += fmt::format("the ceiling is a copy in the memory of {}, {:.1f} GB/s read and written\n",
                              name_of(model.device.device), result.ceiling_bytes_per_s / kGiga);
  figures.json = describe(model, communicator);
  figures.json.update({{"device", name_of(model.device.device)},
                       {"ceiling_gb_per_s", result.ceiling_bytes_per_s / kGiga},
                       {"kernels", rows}});
  return figures;
}

Figures measure_attention(const BenchModel& model, const BenchOptions& options, Communicator& communicator) {
  const AttentionBenchResult result = bench_attention(model, options.rounds, communicator);
  Figures figures;
  figures.text = headline("attention", model, communicator);
  Json rows = Json::array();
  for (const AttentionBenchRow& row : result.rows) {
    figures.text += fmt::format("{:<10} {:>9.3f} ms {:>10.1f} GFLOP/s  {:>5.0f} % of the ceiling\n", row.name, row.ms,
                                row.flop_per_s / kGiga, 100 * row.of_ceiling);
    rows.push_back(
        {{"pass", row.name}, {"ms", row.ms}, {"gflop_per_s", row.flop_per_s / kGiga}, {"of_ceiling", row.of_ceiling}});
  }
  figures.text += fmt::format("the ceiling is {:.1f} GFLOP/s of matrix products on {}\n",
                              result.ceiling_flop_per_s / kGiga, name_of(model.device.device));
  figures.text += result.note.empty() ? "" : result.note + "\n";
  figures.json = describe(model, communicator);
  figures.json.update({{"device", name_of(model.device.device)},
                       {"ceiling_gflop_per_s", result.ceiling_flop_per_s / kGiga},
                       {"passes", rows}});
  return figures;
}

Figures measure_loader(const BenchModel& model, const BenchOptions& options, Communicator& communicator) {
  require(model.has_data, "{} is not a dataset; expected --set data.train=DIR", model.config.data.train);
  const LoaderBenchResult result = bench_loader(model, options.rounds, communicator);
  Figures figures;
  figures.text = fmt::format(
      "loader: {} rank{}, micro-batches of {} x {} tokens\n{} tokens/s, {:.0f} MB/s: {:.0f} % of reading the files in "
      "their order, {:.0f} MB/s\n",
      communicator.world_size(), communicator.world_size() == 1 ? "" : "s", model.config.train.micro_batch_size,
      model.config.data.sequence, format_count(result.tokens_per_s), result.bytes_per_s / kMega,
      100 * result.of_ceiling, result.ceiling_bytes_per_s / kMega);
  figures.json = describe(model, communicator);
  figures.json.update({{"tokens_per_s", result.tokens_per_s},
                       {"mb_per_s", result.bytes_per_s / kMega},
                       {"ceiling_mb_per_s", result.ceiling_bytes_per_s / kMega},
                       {"of_ceiling", result.of_ceiling}});
  return figures;
}

Figures measure_checkpoint(const BenchModel& model, const BenchOptions& options, Communicator& communicator,
                           const StopSignal& stop) {
  const CheckpointBenchResult result =
      bench_checkpoint(model, options.rounds, communicator, [&stop] { return stop.requested(); });
  Figures figures;
  figures.text = headline("checkpoint", model, communicator);
  figures.text += fmt::format(
      "a save makes the training {:.1f} ms longer, {:.1f} of them to {}: {:.2f} % of 100 steps of {:.1f} ms\n",
      result.exposed_ms, result.copy_ms,
      model.config.checkpoint.background ? "copy the state" : "write it before the next step",
      100 * result.of_100_steps, result.step_ms);
  figures.text += fmt::format("it lasts {:g} steps, {:.0f} ms; with nothing beside it {:.0f} ms\n", result.save_steps,
                              result.save_ms, result.idle_ms);
  figures.text += fmt::format("{} in {}: {:.0f} MB/s, {:.0f} % of plain files, {:.0f} MB/s\n",
                              format_bytes(result.size_bytes), checkpoints_folder(model.config).string(),
                              result.bytes_per_s / kMega, 100 * result.of_ceiling, result.ceiling_bytes_per_s / kMega);
  figures.json = describe(model, communicator);
  figures.json.update({{"background", model.config.checkpoint.background},
                       {"checkpoint_bytes", result.size_bytes},
                       {"step_ms", result.step_ms},
                       {"exposed_ms", result.exposed_ms},
                       {"copy_ms", result.copy_ms},
                       {"exposed_of_100_steps", result.of_100_steps},
                       {"save_steps", result.save_steps},
                       {"save_ms", result.save_ms},
                       {"idle_ms", result.idle_ms},
                       {"mb_per_s", result.bytes_per_s / kMega},
                       {"ceiling_mb_per_s", result.ceiling_bytes_per_s / kMega},
                       {"of_ceiling", result.of_ceiling}});
  return figures;
}

using Measure = std::function<Figures(const BenchModel&, const BenchOptions&, Communicator&)>;

int run_bench(const char* name, const Measure& measure, const BenchOptions& options) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.device.empty()) {
    overrides.push_back("device.kind=" + options.device);
  }
  const Config config = load_config(options.config, overrides);
  const auto communicator = make_communicator({.backend = config.comm.backend,
                                               .ranks_per_node = config.comm.ranks_per_node,
                                               .timeout_ms = config.comm.timeout_s * 1000,
                                               .servers = config.comm.servers,
                                               .wire = config.comm.wire,
                                               .shared_memory = config.comm.shared_memory,
                                               .tls_ca = config.comm.tls_ca});
  {
    const BenchModel model = resolve_bench_model(config, *communicator);
    Figures figures = measure(model, options, *communicator);
    if (communicator->rank() == 0) {
      Json json = {{"bench", name}};
      json.update(figures.json);
      print(options.json ? json.dump() + "\n" : figures.text);
    }
  }
  communicator->close();
  return kExitDone;
}

using Run = std::function<int(const BenchOptions&)>;

void add_model_command(CLI::App& bench, CommandContext& context, const char* name, const char* help, const Run& run) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* command = bench.add_subcommand(name, help);
  command
      ->add_option("CONFIG", options->config, "Configuration of a training run; without its data, --set model.vocab=N")
      ->required();
  command->add_option("--set", options->overrides, "Override a key, for example --set data.sequence=256; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "Short for --set device.kind=")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--rounds", options->rounds, "Measurements, each beside the machine's limit; medians are printed")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([run, options, &context] { context.run = [run, options] { return run(*options); }; });
}

void add_model_bench(CLI::App& bench, CommandContext& context, const char* name, const char* help,
                     const Measure& measure) {
  add_model_command(bench, context, name, help,
                    [name, measure](const BenchOptions& options) { return run_bench(name, measure, options); });
}

void add_checkpoint(CLI::App& bench, CommandContext& context) {
  add_model_command(bench, context, "checkpoint",
                    "What a save costs the steps beside it, and how fast it is, beside plain files",
                    [&context](const BenchOptions& options) {
                      context.stop.listen();  // its files are to go also when it is stopped
                      const Measure measure = [&context](const BenchModel& model, const BenchOptions& same,
                                                         Communicator& communicator) {
                        return measure_checkpoint(model, same, communicator, context.stop);
                      };
                      return run_bench("checkpoint", measure, options);
                    });
}

}  // namespace

void add_bench(CLI::App& app, CommandContext& context) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine, and how much of it a training run uses");
  bench->require_subcommand(1);
  add_model_bench(*bench, context, "gemm", "Each matrix product of a model, forward and both gradients", measure_gemm);
  add_all_reduce_bench(*bench, context);
  add_model_bench(*bench, context, "loader", "Batches out of a dataset, beside reading its files in their order",
                  measure_loader);
  add_model_bench(*bench, context, "step", "A whole training step, and where its time goes", measure_step);
  add_model_bench(*bench, context, "memory", "The kernels that memory limits, beside a copy", measure_memory);
  add_model_bench(*bench, context, "attention", "Attention of a model, forward and gradient, beside matrix products",
                  measure_attention);
  add_checkpoint(*bench, context);
  bench->footer(
      "Alone or under mpirun, as the run would be. Every figure stands beside the machine's own limit, measured in "
      "the\n"
      "same rounds: compare the ratios, not the seconds.\n"
      "checkpoint writes to runs/NAME/checkpoints/benchmark, and leaves nothing there.\n"
      "Example: mpirun -np 2 lockstep bench step examples/gpt2-124m/gpt2-124m.yaml --set model.vocab=50257 --set "
      "data.sequence=256 --set train.micro_batches=2 --set train.micro_batch_size=2");
}

}  // namespace lockstep
