#include "trainer/train_checkpoint.h"

#include <span>

#include "base/dtype.h"
#include "trainer/adapter_config.h"
#include "trainer/model/architecture.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

// What only this rank has, or its part of what all of them have.
ElementRange range_of_rank(const TrainStep& train_step, const Communicator& communicator) {
  const Replica& replica = train_step.replica();
  return train_step.is_sharded() ? train_step.optimizer().owned()
                                 : balanced_range(replica.layout(), communicator.rank(), communicator.world_size(),
                                                  replica.working_dtype());
}

}  // namespace

CheckpointOptions checkpoint_options(const Config& config, const TrainStep& train_step,
                                     const Communicator& communicator, Backend& backend,
                                     const SavedTokenizer& tokenizer) {
  const Replica& replica = train_step.replica();
  CheckpointOptions options;
  options.folder = checkpoints_folder(config);
  options.rank = communicator.rank();
  options.world = communicator.world_size();
  options.model_dtype = replica.working_dtype();
  options.model_file = config.tune.method == TuneMethod::kFull   ? kModelFileName
                       : config.tune.method == TuneMethod::kLora ? kAdapterFileName
                                                                 : kPartFileName;
  options.range = range_of_rank(train_step, communicator);
  options.keep = config.checkpoint.keep;
  options.keep_best = config.checkpoint.keep_best;
  options.background = config.checkpoint.background;
  if (backend.device().kind != DeviceKind::kCpu) {
    options.copy_from_device = [&backend](const BufferView& from, const BufferView& to) { backend.copy(from, to); };
  }
  if (options.rank == 0) {
    if (config.tune.method == TuneMethod::kFull) {
      options.texts["config.json"] =
          to_hf_config(replica.model().architecture(), {.end_of_text = tokenizer.end_of_text.id,
                                                        .beginning_of_text = tokenizer.beginning_of_text.id,
                                                        .dropout = config.model.dropout,
                                                        .dtype = replica.working_dtype()});
    } else if (config.tune.method == TuneMethod::kLora) {
      options.texts["adapter_config.json"] =
          to_adapter_config(config.tune, replica.model().architecture(), config.model.from);
    }
    options.texts["tokenizer.json"] = tokenizer.json;
    options.texts["tokenizer_config.json"] =
        to_hf_tokenizer_config({.end_of_text = tokenizer.end_of_text.text,
                                .beginning_of_text = tokenizer.beginning_of_text.text,
                                .chat_template = tokenizer.chat_template,
                                .template_name = tokenizer.template_name,
                                .context = config.model.context});
  }
  return options;
}

CheckpointSource checkpoint_source(const TrainStep& train_step, const Communicator& communicator) {
  const Replica& replica = train_step.replica();
  const Optimizer& optimizer = train_step.optimizer();
  const ElementRange range = range_of_rank(train_step, communicator);
  const auto part = [&](std::span<float> moments) {
    return moments.subspan(range.begin - optimizer.owned().begin, range.size());
  };
  CheckpointSource source;
  source.device = replica.backend().device();
  if (communicator.rank() == 0) {
    source.weights = replica.working();
  }
  if (replica.working_dtype() != DType::kF32) {
    source.master = replica.master_of(range);
  }
  source.exp_avg = part(optimizer.exp_avg());
  source.exp_avg_sq = part(optimizer.exp_avg_sq());
  return source;
}

RunPosition run_position(const Config& config, std::int64_t completed, std::uint64_t tokens) {
  RunPosition position;
  position.step = static_cast<std::uint64_t>(completed);
  position.tokens = tokens;
  position.samples = static_cast<std::uint64_t>(completed * config.train.micro_batches * config.train.micro_batch_size);
  position.seed = config.run.seed;
  position.config_text = to_yaml(config);
  return position;
}

std::uint64_t checkpoint_bytes(const Replica& replica) {
  const DType working = replica.working_dtype();
  const std::uint64_t moments_and_master = (working == DType::kF32 ? 2 : 3) * sizeof(float);
  return replica.layout().total() * (size_of(working) + moments_and_master);
}

}  // namespace lockstep
