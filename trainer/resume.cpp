#include "trainer/resume.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/model/architecture.h"

namespace lockstep {
namespace {

using nlohmann::json;

// Throws unless the two configurations agree on one key.
template <typename T>
void require_same(const std::string& source, const char* key, const T& saved, const T& now) {
  require(saved == now,
          "{} was made with {} = {}, the configuration says {}; give this run another run.name, or start over with "
          "--resume none",
          source, key, saved, now);
}

}  // namespace

std::string to_json(const RunProgress& progress) {
  const auto& best = progress.best_validation_loss;
  json object = {{"best_validation_loss", best ? json(*best) : json()},
                 {"without_improvement", progress.without_improvement},
                 {"validation", progress.validation},
                 {"evaluation_pending", progress.evaluation_pending},
                 {"data_fingerprint", progress.data_fingerprint},
                 {"base_fingerprint", progress.base_fingerprint}};
  if (progress.loss_scale) {
    object["loss_scale"] = {{"scale", progress.loss_scale->scale}, {"steps", progress.loss_scale->steps}};
  }
  return object.dump();
}

void RunProgress::note_validation(double loss, double min_delta) {
  const bool better = std::isfinite(loss) && (!best_validation_loss || loss < *best_validation_loss - min_delta);
  without_improvement = better ? 0 : without_improvement + 1;
  if (better) {
    best_validation_loss = loss;
  }
}

bool RunProgress::measure_on(const std::string& what) {
  if (validation == what) {
    return false;
  }
  validation = what;
  best_validation_loss.reset();
  without_improvement = 0;
  return true;
}

RunProgress run_progress_from_json(const std::string& text) {
  const json object = json::parse(text, nullptr, false);
  try {
    RunProgress progress;
    if (const json& best = object.at("best_validation_loss"); !best.is_null()) {
      progress.best_validation_loss = best.get<double>();
    }
    object.at("without_improvement").get_to(progress.without_improvement);
    object.at("validation").get_to(progress.validation);
    progress.evaluation_pending = object.value("evaluation_pending", false);  // older checkpoints do not have it
    object.at("data_fingerprint").get_to(progress.data_fingerprint);
    progress.base_fingerprint = object.value("base_fingerprint", "");
    if (object.contains("loss_scale")) {
      const json& scale = object.at("loss_scale");
      progress.loss_scale = {scale.at("scale").get<double>(), scale.at("steps").get<std::int64_t>()};
      if (!LossScaler::is_possible(*progress.loss_scale)) {
        fail(ErrorCode::kCorrupt, "resume: the manifest's loss scale is {} after {} steps, expected a power of two",
             progress.loss_scale->scale, progress.loss_scale->steps);
      }
    }
    return progress;
  } catch (const json::exception& error) {
    fail(ErrorCode::kCorrupt, "resume: the manifest's \"extra\" object is not what a training run writes: {}",
         error.what());
  }
}

std::string data_fingerprint(const DatasetInfo& info) {
  Hasher hasher;
  hasher.update(fmt::format("{} {} {}\n", name_of(info.kind), info.tokens, info.tokenizer.fingerprint));
  for (const DatasetFile& file : info.files) {
    hasher.update(fmt::format("{} {} {}\n", file.name, file.tokens, file.xxh3_128));
  }
  return hasher.finish().hex();
}

std::filesystem::path choose_checkpoint(const std::filesystem::path& checkpoints, const std::string& resume, Log& log) {
  if (resume == "none") {
    return {};
  }
  put_back_replaced(checkpoints);
  if (resume == "auto") {
    const auto latest = find_latest_checkpoint(checkpoints, [&](const DamagedCheckpoint& damaged) {
      log.warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
    });
    return latest ? latest->path() : std::filesystem::path();
  }
  require(std::filesystem::is_directory(resume), "--resume {}: no such folder; expected auto, none or a checkpoint",
          resume);
  std::error_code error;
  require(std::filesystem::equivalent(std::filesystem::path(resume) / "..", checkpoints, error) ||
              list_checkpoints(checkpoints).empty(),
          "--resume {}: {} has checkpoints of its own, from which --resume auto goes on; to start from another run's, "
          "give this one another run.name",
          resume, checkpoints.string());
  return CheckpointReader(resume).path();
}

void clear_the_way(const std::filesystem::path& checkpoints, std::uint64_t step, Log& log) {
  clean_leftovers(checkpoints);
  if (const int aside = supersede_newer(checkpoints, step); aside > 0) {
    log.info("{} checkpoint{} of this run after step {} will be removed when the first new one is there", aside,
             aside == 1 ? "" : "s", step);
  }
}

Config continue_config(Config config, const std::string& saved_text, const std::string& source) {
  const Config saved = parse_config(saved_text, source);
  if (!config.model.from.empty()) {
    // The weights that the run began with are not needed again, and may be gone.
    config.model = with_shape_of(config.model, architecture_of(saved.model), source);
  }
  if (config.train.micro_batches == 0) {
    config.train.micro_batches = saved.train.micro_batches;
  }
  const int sequence = config.data.sequence != 0 ? config.data.sequence : config.model.context;
  require_same(source, "model.family", name_of(saved.model.family), name_of(config.model.family));
  require_same(source, "model.layers", saved.model.layers, config.model.layers);
  require_same(source, "model.heads", saved.model.heads, config.model.heads);
  require_same(source, "model.width", saved.model.width, config.model.width);
  require_same(source, "model.dropout", saved.model.dropout, config.model.dropout);
  require_same(source, "model.rope_theta", saved.model.rope_theta, config.model.rope_theta);
  require_same(source, "model.rope_scaling", name_of(saved.model.rope_scaling), name_of(config.model.rope_scaling));
  require_same(source, "model.rope_factor", saved.model.rope_factor, config.model.rope_factor);
  require_same(source, "model.rope_low_freq_factor", saved.model.rope_low_freq_factor,
               config.model.rope_low_freq_factor);
  require_same(source, "model.rope_high_freq_factor", saved.model.rope_high_freq_factor,
               config.model.rope_high_freq_factor);
  require_same(source, "model.rope_original_context", saved.model.rope_original_context,
               config.model.rope_original_context);
  require_same(source, "model.norm_eps", saved.model.norm_eps, config.model.norm_eps);
  require_same(source, "tune.method", name_of(saved.tune.method), name_of(config.tune.method));
  if (saved.tune.method == TuneMethod::kFreeze) {
    require_same(source, "tune.blocks", saved.tune.blocks, config.tune.blocks);
  }
  if (saved.tune.method == TuneMethod::kLora) {
    require_same(source, "tune.targets", saved.tune.targets, config.tune.targets);
    require_same(source, "tune.rank", saved.tune.rank, config.tune.rank);
    require_same(source, "the adapters' scale (tune.alpha, tune.rslora)", saved.tune.scale(), config.tune.scale());
    require_same(source, "tune.dora", saved.tune.dora, config.tune.dora);
    require_same(source, "tune.lora_plus", saved.tune.lora_plus, config.tune.lora_plus);
    require_same(source, "tune.dropout", saved.tune.dropout, config.tune.dropout);
    require_same(source, "tune.bias", name_of(saved.tune.bias), name_of(config.tune.bias));
  }
  require_same(source, "tune.also_train", saved.tune.also_train, config.tune.also_train);
  require_same(source, "tune.quantize", name_of(saved.tune.quantize), name_of(config.tune.quantize));
  require_same(source, "preference.loss", name_of(saved.preference.loss), name_of(config.preference.loss));
  require_same(source, "preference.beta", saved.preference.beta, config.preference.beta);
  require_same(source, "preference.label_smoothing", saved.preference.label_smoothing,
               config.preference.label_smoothing);
  require_same(source, "preference.sft", saved.preference.sft, config.preference.sft);
  require_same(source, "run.seed", saved.run.seed, config.run.seed);
  require_same(source, "data.sequence", saved.data.sequence, sequence);
  require_same(source, "data.packing", saved.data.packing, config.data.packing);
  require_same(source, "train.embedding_noise", saved.train.embedding_noise, config.train.embedding_noise);
  require_same(source, "train.determinism", name_of(saved.train.determinism), name_of(config.train.determinism));
  require_same(source, "train.micro_batches", saved.train.micro_batches, config.train.micro_batches);
  require_same(source, "train.micro_batch_size", saved.train.micro_batch_size, config.train.micro_batch_size);
  require_same(source, "train.precision", name_of(saved.train.precision), name_of(config.train.precision));
  return config;
}

void check_same_data(const RunProgress& progress, const DatasetInfo& info, const std::string& dataset) {
  require(progress.data_fingerprint == data_fingerprint(info),
          "{} does not hold the data that this run was trained on so far; give the run another run.name, or start "
          "over with --resume none",
          dataset);
}

}  // namespace lockstep
