// What must hold between several keys, and between the configuration and the job.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "trainer/config_keys.h"
#include "trainer/loss_scaler.h"

namespace lockstep {
namespace {

constexpr int kHiddenMultiple = 64;
constexpr int kLeastAutoMicroBatches = 8;

bool is_power_of_two(int value) { return value > 0 && std::has_single_bit(static_cast<unsigned>(value)); }

// The gradient of a token's loss begins at up to 8, whatever the size of a step.
double first_loss_scale(const Config& config) {
  const auto tokens = static_cast<std::uint64_t>(config.train.micro_batches) *
                      static_cast<std::uint64_t>(config.train.micro_batch_size) *
                      static_cast<std::uint64_t>(config.data.sequence);
  return std::min(LossScaler::kMost, 8 * static_cast<double>(std::bit_ceil(tokens)));
}

int default_hidden(const ModelConfig& model) {
  if (model.family == ModelFamily::kGpt2) {
    return 4 * model.width;
  }
  const int exact = (8 * model.width + 2) / 3;
  return (exact + kHiddenMultiple - 1) / kHiddenMultiple * kHiddenMultiple;
}

void check_model(const ModelConfig& model, const std::string& origin) {
  if (model.layers == 0 || model.heads == 0 || model.width == 0) {
    return;  // the shape comes with the weights of model.from
  }
  const bool gpt2 = model.family == ModelFamily::kGpt2;
  require(model.width % model.heads == 0 || (!gpt2 && model.head_dim > 0),
          "{}: model.width is {}; expected a multiple of model.heads, {}", origin, model.width, model.heads);
  require(!gpt2 || model.head_dim == 0 || model.head_dim == model.width / model.heads,
          "{}: model.head_dim is {}; gpt2 has model.width / model.heads, {}", origin, model.head_dim,
          model.width / model.heads);
  require(!gpt2 || model.kv_heads == model.heads, "{}: model.kv_heads is {}; gpt2 has as many as model.heads, {}",
          origin, model.kv_heads, model.heads);
  require(model.heads % model.kv_heads == 0, "{}: model.kv_heads is {}; expected a divisor of model.heads, {}", origin,
          model.kv_heads, model.heads);
  require(gpt2 || model.head_dim % 2 == 0,
          "{}: a head is {} wide (model.head_dim, or model.width / model.heads); rotary positions need an even width",
          origin, model.head_dim);
  require(!gpt2 || model.rope_scaling == RopeScaling::kNone,
          "{}: model.rope_scaling is {}; gpt2 has no rotary positions", origin, name_of(model.rope_scaling));
  require(model.rope_scaling != RopeScaling::kLlama3 || model.rope_low_freq_factor < model.rope_high_freq_factor,
          "{}: model.rope_low_freq_factor is {}; expected less than model.rope_high_freq_factor, {}", origin,
          model.rope_low_freq_factor, model.rope_high_freq_factor);
}

void check_tuning(const Config& config, const std::string& origin) {
  const TuneConfig& tune = config.tune;
  require(tune.method != TuneMethod::kFreeze || tune.blocks > 0 || !tune.also_train.empty(),
          "{}: nothing is trained; tune.blocks is 0 and tune.also_train is empty", origin);
  require(tune.method != TuneMethod::kLora || !tune.targets.empty(),
          "{}: tune.targets is empty; expected all, or names of layers separated by commas", origin);
  require(tune.method != TuneMethod::kFull || tune.quantize == Packing::kNone,
          "{}: tune.quantize is {}, but tune.method full trains everything", origin, name_of(tune.quantize));
  require(tune.method != TuneMethod::kFull || tune.also_train.empty(),
          "{}: tune.also_train is {}, but tune.method full trains everything", origin, tune.also_train);
}

void check_preference(const Config& config, const std::string& origin) {
  const PreferenceConfig& preference = config.preference;
  require(preference.label_smoothing == 0 || preference.loss == PreferenceLoss::kSigmoid,
          "{}: preference.label_smoothing is {}, which is for preference.loss sigmoid", origin,
          preference.label_smoothing);
}

void check_mode(const Config& config, const std::string& origin) {
  const CommConfig& comm = config.comm;
  if (comm.mode == "sync") {
    return;
  }
  require(comm.backend == "server", "{}: comm.mode is {}, which needs comm.backend server; found {}", origin, comm.mode,
          comm.backend);
  require(comm.wire == "fp32", "{}: comm.mode is {}, in which everything travels as fp32; found comm.wire {}", origin,
          comm.mode, comm.wire);
  require(comm.zero == 0, "{}: comm.mode is {}, in which servers hold the optimizer's state; expected comm.zero 0",
          origin, comm.mode);
}

void check_schedule(const Config& config, const std::string& origin) {
  const ScheduleConfig& schedule = config.schedule;
  const std::int64_t steps = config.train.steps;
  require(steps > 0 || config.train.epochs > 0,
          "{}: neither train.steps nor train.epochs is given; expected one of them", origin);
  // A warm-up longer than the run is fine: `--set train.steps=10` tries a long configuration out.
  require(schedule.min_lr <= config.optimizer.lr, "{}: schedule.min_lr is {}; expected at most optimizer.lr, {}",
          origin, schedule.min_lr, config.optimizer.lr);
  require(schedule.name != ScheduleName::kWsd || steps == 0 || schedule.warmup_steps + schedule.decay_steps <= steps,
          "{}: schedule.warmup_steps and decay_steps are {} and {}; expected at most train.steps together, {}", origin,
          schedule.warmup_steps, schedule.decay_steps, steps);
}

void check_evaluation(const Config& config, const std::string& origin) {
  const bool evaluates = !config.data.valid.empty();
  require(config.evaluate.every_steps == 0 || evaluates,
          "{}: evaluate.every_steps is {}, but data.valid names no dataset", origin, config.evaluate.every_steps);
  require(config.evaluate.patience == 0 || config.evaluate.every_steps > 0,
          "{}: evaluate.patience is {}; it needs evaluations, so set evaluate.every_steps", origin,
          config.evaluate.patience);
  require(!config.checkpoint.keep_best || evaluates,
          "{}: checkpoint.keep_best needs a validation loss, but data.valid names no dataset", origin);
}

}  // namespace

std::int64_t decay_steps(const Config& config) {
  const std::int64_t written = config.schedule.decay_steps;
  return written != 0 ? written : std::max<std::int64_t>(1, config.train.steps / 10);
}

double TuneConfig::scale() const {
  const double written = alpha == 0 ? 2.0 * rank : alpha;
  return written / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
}

Config with_derived_shapes(Config config) {
  ModelConfig& model = config.model;
  model.kv_heads = model.kv_heads == 0 ? model.heads : model.kv_heads;
  if (model.head_dim == 0 && model.heads > 0 && model.width % model.heads == 0) {
    model.head_dim = model.width / model.heads;
  }
  model.hidden = model.hidden == 0 ? default_hidden(model) : model.hidden;
  model.context = model.context == 0 ? config.data.sequence : model.context;
  config.data.sequence = config.data.sequence == 0 ? model.context : config.data.sequence;
  config.tune.alpha = config.tune.alpha == 0 ? 2.0 * config.tune.rank : config.tune.alpha;
  ScheduleConfig& schedule = config.schedule;
  if (config.train.steps > 0) {
    if (schedule.warmup_steps == 0) {
      schedule.warmup_steps =
          static_cast<std::int64_t>(std::ceil(schedule.warmup_ratio * static_cast<double>(config.train.steps)));
    }
    if (schedule.name == ScheduleName::kWsd) {
      schedule.decay_steps = decay_steps(config);
    }
  }
  return config;
}

void check_no_preference(const Config& config) {
  for (const ConfigKey& key : config_keys()) {
    const std::string value = value_text(key, config);
    require(section_of(key) != "preference" || value == value_text(key, Config{}),
            "{} is {}, but data.train, {}, holds no pairs; pack it with --format pairs", key.name, value,
            config.data.train);
  }
}

void check_consistency(const Config& written, const std::string& origin) {
  const std::string& name = written.run.name;
  require(!name.empty() && name.find('/') == std::string::npos && !name.starts_with('.'),
          "{}: run.name is {}; expected the name of a folder, without / and not beginning with a dot", origin,
          name.empty() ? "empty" : name);
  const Config config = with_derived_shapes(written);
  check_model(config.model, origin);
  require(config.data.sequence > 0 || !config.model.from.empty(),
          "{}: neither data.sequence nor model.context is given; expected at least one of them", origin);
  require(config.model.context == 0 || config.data.sequence <= config.model.context,
          "{}: data.sequence is {}; expected at most model.context, {}", origin, config.data.sequence,
          config.model.context);
  require(config.train.determinism == Determinism::kFixed || config.train.micro_batches == 0 ||
              is_power_of_two(config.train.micro_batches),
          "{}: train.micro_batches is {}; determinism: elastic needs a power of two", origin,
          config.train.micro_batches);
  require(config.train.loss_scale == 0 || LossScaler::is_possible({config.train.loss_scale, 0}),
          "{}: train.loss_scale is {}; expected auto or a power of two", origin, config.train.loss_scale);
  require(config.train.precision != Precision::kFp16 || config.comm.wire != "int8",
          "{}: comm.wire is int8, where a step makes good what the one before lost, and train.precision is fp16, where "
          "the two may have other scales; expected comm.wire fp32 or bf16",
          origin);
  check_tuning(config, origin);
  check_preference(config, origin);
  check_mode(config, origin);
  check_schedule(config, origin);
  check_evaluation(config, origin);
}

Config resolve(Config written, const JobFacts& facts) {
  Config config = with_derived_shapes(std::move(written));
  const int world = facts.world_size;
  if (config.train.determinism == Determinism::kElastic) {
    require(is_power_of_two(world),
            "the job has {} ranks; determinism: elastic needs a power of two (determinism: fixed takes any number)",
            world);
  }
  if (config.train.micro_batches == 0) {
    config.train.micro_batches = std::max(kLeastAutoMicroBatches, world);
  }
  require(config.train.determinism == Determinism::kFixed || is_power_of_two(config.train.micro_batches),
          "train.micro_batches is {}; determinism: elastic needs a power of two", config.train.micro_batches);
  require(world <= config.train.micro_batches,
          "the job has {} ranks, but a step has {} micro-batches (train.micro_batches); expected at most as many ranks",
          world, config.train.micro_batches);
  if (config.train.steps == 0) {
    const std::uint64_t samples = facts.samples ? facts.samples(config.data.sequence) : 1;
    const double in_a_step = static_cast<double>(config.train.micro_batches) * config.train.micro_batch_size;
    const double steps = std::ceil(config.train.epochs * static_cast<double>(samples) / in_a_step);
    config.train.steps = std::max<std::int64_t>(1, static_cast<std::int64_t>(steps));
    config = with_derived_shapes(std::move(config));
    check_schedule(config, "train.epochs");
  }
  if (config.train.precision == Precision::kFp16 && config.train.loss_scale == 0) {
    config.train.loss_scale = first_loss_scale(config);
  }
  if (config.train.threads == 0) {
    config.train.threads = std::max(1, facts.cores_on_node / std::max(1, facts.ranks_on_node));
  }
  if (config.model.vocab == 0) {
    config.model.vocab = facts.vocab;
  }
  require(config.model.vocab >= facts.vocab, "model.vocab is {}; the data's tokenizer has {} tokens",
          config.model.vocab, facts.vocab);
  return config;
}

}  // namespace lockstep
