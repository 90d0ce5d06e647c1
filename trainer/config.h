// The configuration of a training run: the YAML of docs/design.md as one typed value.
//
// Every key stands in one table (config_table.cpp) with its default, range and help text. Reading YAML, --set
// overrides, printing, and `lockstep train --help-config` all go through that table.
//
// A Config comes in two states. load_config() and parse_config() return what was written, with defaults; 0 or `auto`
// then mean "to be derived". resolve() replaces those by numbers once the job and the data are known.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "ops/packed.h"

namespace lockstep {

enum class ModelFamily : std::uint8_t { kGpt2, kLlama, kMistral, kQwen2, kQwen3 };
enum class RopeScaling : std::uint8_t { kNone, kLinear, kLlama3 };
enum class Precision : std::uint8_t { kFp32, kBf16, kFp16 };
enum class Determinism : std::uint8_t { kElastic, kFixed };
enum class Recompute : std::uint8_t { kNone, kAttention, kBlock };
enum class OptimizerName : std::uint8_t { kAdamW };
enum class TuneMethod : std::uint8_t { kFull, kFreeze, kLora };
enum class TuneBias : std::uint8_t { kNone, kAll, kLoraOnly };
enum class PreferenceLoss : std::uint8_t { kSigmoid, kHinge, kIpo };
enum class DeviceWish : std::uint8_t { kAuto, kCpu, kCuda };
enum class ScheduleName : std::uint8_t { kConstant, kLinear, kCosine, kWsd };

struct RunConfig {
  std::string name;  // empty: the configuration file's name without its extension
  std::string dir = "runs";
  std::uint64_t seed = 1337;

  friend bool operator==(const RunConfig&, const RunConfig&) = default;
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kGpt2;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;  // 0: heads
  int width = 0;
  int head_dim = 0;  // 0: width / heads
  int hidden = 0;    // 0: 4 * width (gpt2), 8/3 * width rounded up to a multiple of 64 (the others)
  int context = 0;   // 0: data.sequence
  int vocab = 0;     // 0: the data's tokenizer decides
  double dropout = 0.0;
  bool tied = true;  // the output head shares the token embedding
  bool bias = true;  // gpt2: biases in linear layers and norms
  double rope_theta = 10000.0;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1.0;
  double rope_low_freq_factor = 1.0;   // llama3
  double rope_high_freq_factor = 4.0;  // llama3
  int rope_original_context = 8192;    // llama3
  double norm_eps = 1e-5;
  std::string from;  // a folder whose weights the run starts from; empty: random

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// What of the model of model.from is trained.
struct TuneConfig {
  TuneMethod method = TuneMethod::kFull;
  int blocks = 2;                   // freeze: the last so many
  std::string targets = "all";      // lora: names of linear layers, separated by commas
  int rank = 8;                     // lora
  double alpha = 0;                 // lora; 0: 2 * rank
  double dropout = 0;               // lora: of what adapters read
  bool rslora = false;              // lora: alpha / sqrt(rank) instead of alpha / rank
  bool dora = false;                // lora: outputs have lengths of their own
  double lora_plus = 1;             // lora: times the learning rate, for the second matrices
  TuneBias bias = TuneBias::kNone;  // lora
  std::string also_train;           // names of layers besides
  // freeze, lora: how matrices of blocks that are not trained are kept while training.
  Packing quantize = Packing::kNone;

  // lora: what the adapters' products are multiplied by.
  [[nodiscard]] double scale() const;
  friend bool operator==(const TuneConfig&, const TuneConfig&) = default;
};

// Of a dataset of pairs (Rafailov et al., "Direct Preference Optimization", 2023; hinge: Zhao et al. 2023; ipo: Azar et
// al. 2023): trainer/preference.h has the formulas.
struct PreferenceConfig {
  PreferenceLoss loss = PreferenceLoss::kSigmoid;
  double beta = 0.1;
  double label_smoothing = 0;  // sigmoid: share of pairs that are taken to be the wrong way round
  double sft = 0;              // weight of the better answer's own loss beside it

  friend bool operator==(const PreferenceConfig&, const PreferenceConfig&) = default;
};

struct DataConfig {
  std::string train;
  std::string valid;     // empty: no evaluation
  int sequence = 0;      // tokens in a sample; 0: model.context
  bool packing = false;  // several conversations to a sample
  std::string trace;     // file prefix: each rank writes the samples it read to TRACE.rank-R
  int read_ahead = 2;    // batches that the loader's thread prepares in advance

  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

struct TrainConfig {
  std::int64_t steps = 0;  // 0: from epochs
  double epochs = 0;       // passes over data.train, where steps is 0
  int micro_batches = 0;   // 0: auto, the larger of 8 and the world size
  int micro_batch_size = 8;
  Precision precision = Precision::kFp32;
  // fp16: at the start, a power of two; 0: auto, 8 times the tokens of a step, rounded up to one.
  double loss_scale = 0;
  std::int64_t loss_scale_window = 2000;  // fp16: steps without overflow before the scale doubles
  Determinism determinism = Determinism::kElastic;
  Recompute recompute = Recompute::kNone;
  double embedding_noise = 0;  // alpha of NEFTune
  int threads = 0;             // of each rank; 0: the cores of the node divided by its ranks

  friend bool operator==(const TrainConfig&, const TrainConfig&) = default;
};

struct OptimizerConfig {
  OptimizerName name = OptimizerName::kAdamW;
  double lr = 3e-4;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // 0: off

  friend bool operator==(const OptimizerConfig&, const OptimizerConfig&) = default;
};

struct ScheduleConfig {
  ScheduleName name = ScheduleName::kCosine;
  std::int64_t warmup_steps = 0;
  double warmup_ratio = 0;  // of train.steps, where warmup_steps is 0
  double min_lr = 0.0;
  std::int64_t decay_steps = 0;  // wsd: the last so many steps; 0: a tenth of train.steps

  friend bool operator==(const ScheduleConfig&, const ScheduleConfig&) = default;
};

struct CommConfig {
  std::string backend = "auto";
  int bucket_mib = 25;
  int zero = 0;
  int ranks_per_node = 0;  // 0: as detected
  int timeout_s = 600;
  int silence_s = 5;
  int stuck_s = 300;
  std::string servers = {};   // backend `server`: HOST:PORT,...
  std::string wire = "fp32";  // the same: fp32, bf16, int8
  std::string tls_ca = {};    // the same: a PEM file of certificates; connections are encrypted
  bool shared_memory = true;  // the same: with servers on the worker's machine
  std::string mode = "sync";  // the same: sync, bounded, async
  int max_staleness = 4;      // mode `bounded`

  friend bool operator==(const CommConfig&, const CommConfig&) = default;
};

struct CheckpointConfig {
  std::int64_t every_steps = 0;  // 0: only at the end and when told to stop
  int keep = 3;
  bool background = true;
  bool keep_best = false;  // never remove the checkpoint with the lowest validation loss

  friend bool operator==(const CheckpointConfig&, const CheckpointConfig&) = default;
};

struct EvaluateConfig {
  std::int64_t every_steps = 0;  // 0: only at the end
  int batches = 20;
  int patience = 0;  // stop after so many evaluations without improvement; 0: never
  double min_delta = 0.0;

  friend bool operator==(const EvaluateConfig&, const EvaluateConfig&) = default;
};

struct LogConfig {
  std::int64_t every_steps = 0;  // a line each so many steps where no bar is drawn; 0: every ten seconds

  friend bool operator==(const LogConfig&, const LogConfig&) = default;
};

struct DeviceConfig {
  DeviceWish kind = DeviceWish::kAuto;
  bool share = false;  // several ranks may use one GPU
  bool tf32 = false;   // f32 products of a GPU by its tensor cores
  bool graph = false;  // a GPU's kernels of a step in CUDA graphs

  friend bool operator==(const DeviceConfig&, const DeviceConfig&) = default;
};

struct Config {
  RunConfig run;
  DeviceConfig device;
  ModelConfig model;
  TuneConfig tune;
  PreferenceConfig preference;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  CommConfig comm;
  CheckpointConfig checkpoint;
  EvaluateConfig evaluate;
  LogConfig log;

  friend bool operator==(const Config&, const Config&) = default;
};

// The length of the final decay of wsd, with its default put in.
[[nodiscard]] std::int64_t decay_steps(const Config& config);

[[nodiscard]] std::string_view name_of(ModelFamily value);
[[nodiscard]] std::string_view name_of(RopeScaling value);
[[nodiscard]] std::string_view name_of(Precision value);
// What activations and the weights that kernels read are kept in.
[[nodiscard]] DType dtype_of(Precision value);
[[nodiscard]] std::string_view name_of(Determinism value);
[[nodiscard]] std::string_view name_of(Recompute value);
[[nodiscard]] std::string_view name_of(TuneMethod value);
[[nodiscard]] std::string_view name_of(TuneBias value);
[[nodiscard]] std::string_view name_of(Packing value);
[[nodiscard]] std::string_view name_of(PreferenceLoss value);
[[nodiscard]] std::string_view name_of(DeviceWish value);
[[nodiscard]] std::string_view name_of(OptimizerName value);
[[nodiscard]] std::string_view name_of(ScheduleName value);

// Reads a configuration file and lays overrides of the form "model.layers=12" over it, the last one wins. Checks names,
// types and ranges, and what can be checked between keys without knowing the job. Throws Error(kUsage) in the form
//   gpt2.yaml:12: model.layrs is not a key; did you mean model.layers?
// and Error(kIo) when the file cannot be read.
[[nodiscard]] Config load_config(const std::filesystem::path& path, std::span<const std::string> overrides);

// The same for a text; `origin` takes the file's place in messages and gives run.name its default.
[[nodiscard]] Config parse_config(std::string_view yaml, const std::string& origin,
                                  std::span<const std::string> overrides = {});

// What a job adds to its configuration.
struct JobFacts {
  int world_size = 1;
  int ranks_on_node = 1;
  int cores_on_node = 1;
  int vocab = 0;  // of the training data's tokenizer
  // How many samples of so many tokens the training data has. May be empty where train.steps is given.
  std::function<std::uint64_t(std::int64_t sequence)> samples = {};
};

// Replaces every "to be derived" by its number and checks the result against the job: under `determinism: elastic` the
// world size and micro_batches are powers of two; the world size is at most micro_batches. Throws Error(kUsage).
[[nodiscard]] Config resolve(Config config, const JobFacts& facts);

// All keys with their values as YAML; parse_config() of it gives an equal Config.
[[nodiscard]] std::string to_yaml(const Config& config);

// For people: every key with its type, default, range and meaning.
[[nodiscard]] std::string config_reference();

}  // namespace lockstep
