// How a LLaMA-Factory file trains: where results go, batches, the optimizer, evaluation.
#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "launcher/llama_factory/translation.h"

namespace lockstep::llama_factory {

namespace fs = std::filesystem;

void Translation::take_output() {
  fs::path out = keys_.text("output_dir", "");
  require(!out.empty(), "{}: output_dir is missing", origin());
  if (!out.has_filename()) {
    out = out.parent_path();  // "saves/x/"
  }
  out_ = out;
  set("output_dir", "run.dir", out.has_parent_path() ? out.parent_path().string() : ".");
  set("output_dir", "run.name", out.filename().string());
  set("seed", "run.seed", keys_.whole("seed", 42));
  const std::string save = keys_.text("save_strategy", "steps");
  require(save == "steps" || save == "no", "{}: save_strategy is {}, expected steps or no", origin(), save);
  const std::int64_t every = keys_.whole("save_steps", 500);
  set("save_steps", "checkpoint.every_steps", save == "no" ? 0 : every);
  if (keys_.find("save_total_limit")) {
    set("save_total_limit", "checkpoint.keep", keys_.whole("save_total_limit", 3));
  }
  set("logging_steps", "log.every_steps", keys_.whole("logging_steps", 500));
  const std::string resume = keys_.text("resume_from_checkpoint", "true");
  require(parse_flag(resume).has_value(),
          "{}: resume_from_checkpoint is {}: a run goes on by itself, and --resume DIR says from another place",
          origin(), resume);
  job_.starts_over_on_other_data = keys_.flag("overwrite_output_dir");
  if (job_.starts_over_on_other_data) {
    note(
        "overwrite_output_dir: a run that is in output_dir goes on, unless its data changes; remove the folder, or "
        "--resume none, to start over");
  }
  keys_.refuse_unless_flag("group_by_length", false, "data.packing has samples of about one length");
  take_best();
}

// Which checkpoint is the best goes by the loss here.
void Translation::take_best() {
  const std::string metric = keys_.text("metric_for_best_model", "loss");
  const bool greater = keys_.flag("greater_is_better");
  if (!keys_.flag("load_best_model_at_end")) {
    for (const char* key : {"metric_for_best_model", "greater_is_better"}) {
      if (const auto value = keys_.find(key)) {
        note(fmt::format("{}: {} -> changes nothing without load_best_model_at_end", key, *value));
      }
    }
    return;
  }
  require(metric == "loss" || metric == "eval_loss",
          "{}: metric_for_best_model is {}, which cannot be honoured; expected loss or eval_loss", origin(), metric);
  require(!greater, "{}: greater_is_better is {}, which cannot be honoured: the best loss is the lowest", origin(),
          keys_.text("greater_is_better", ""));
  set("load_best_model_at_end", "checkpoint.keep_best", true);
}

void Translation::take_batch() {
  set("per_device_train_batch_size", "train.micro_batch_size", keys_.whole_from(1, "per_device_train_batch_size", 8));
  const std::int64_t pieces = keys_.whole_from(1, "gradient_accumulation_steps", 1) * world_;
  set("gradient_accumulation_steps", "train.micro_batches", pieces);
  note(fmt::format(
      "a step is {} micro-batches on {} rank{} there; train.micro_batches, once set, keeps it on any number", pieces,
      world_, world_ == 1 ? "" : "s"));
  if (!std::has_single_bit(static_cast<std::uint64_t>(std::max<std::int64_t>(1, pieces)))) {
    set("gradient_accumulation_steps", "train.determinism", "fixed");
  }
  const std::int64_t steps = keys_.whole("max_steps", -1);
  if (steps > 0) {
    set("max_steps", "train.steps", steps);
  }
  set("num_train_epochs", "train.epochs", keys_.number("num_train_epochs", 3));
  const bool bf16 = keys_.flag("bf16");
  const bool fp16 = keys_.flag("fp16");
  require(!(bf16 && fp16), "{}: bf16 and fp16 are both true; expected one of them at most", origin());
  set(fp16 ? "fp16" : "bf16", "train.precision", fp16 ? "fp16" : bf16 ? "bf16" : "fp32");
  if (keys_.flag("tf32")) {
    set("tf32", "device.tf32", true);
  }
  if (keys_.flag("gradient_checkpointing")) {
    set("gradient_checkpointing", "train.recompute", "block");
  }
  if (keys_.find("deepspeed")) {
    set("deepspeed", "comm.zero", 1);
    note("deepspeed: the optimizer's state is shared out (ZeRO 1); weights and gradients stay whole on each rank");
  }
  if (keys_.find("ddp_timeout")) {
    set("ddp_timeout", "comm.timeout_s", std::min<std::int64_t>(604800, keys_.whole("ddp_timeout", 1800)));
  }
}

void Translation::take_optimizer() {
  const std::string optimizer = keys_.text("optim", "adamw_torch");
  require(optimizer == "adamw_torch" || optimizer == "adamw_torch_fused",
          "{}: optim is {}, which cannot be honoured; expected adamw_torch or adamw_torch_fused", origin(), optimizer);
  set("optim", "optimizer.name", "adamw");
  set("learning_rate", "optimizer.lr", keys_.number("learning_rate", 5e-5));
  set("adam_beta1", "optimizer.betas",
      fmt::format("[{}, {}]", keys_.number("adam_beta1", 0.9), keys_.number("adam_beta2", 0.999)));
  set("adam_epsilon", "optimizer.eps", keys_.number("adam_epsilon", 1e-8));
  set("weight_decay", "optimizer.weight_decay", keys_.number("weight_decay", 0));
  set("max_grad_norm", "optimizer.clip_norm", keys_.number_from(0, "max_grad_norm", 1));
  const std::string schedule = keys_.text("lr_scheduler_type", "linear");
  const std::map<std::string, std::string> known = {{"linear", "linear"},
                                                    {"cosine", "cosine"},
                                                    {"constant", "constant"},
                                                    {"constant_with_warmup", "constant"},
                                                    {"warmup_stable_decay", "wsd"}};
  require(known.contains(schedule),
          "{}: lr_scheduler_type is {}, expected linear, cosine, constant, constant_with_warmup or warmup_stable_decay",
          origin(), schedule);
  set("lr_scheduler_type", "schedule.name", known.at(schedule));
  const double warmup = keys_.number_from(0, "warmup_steps", 0);
  const double ratio = keys_.number_from(0, "warmup_ratio", 0);
  require(ratio < 1, "{}: warmup_ratio is {}, expected a share below 1", origin(), ratio);
  if (schedule == "constant") {
    return;  // does not warm up there, whatever is said
  }
  if (warmup > 0 && warmup < 1) {
    set("warmup_steps", "schedule.warmup_ratio", warmup);
  } else {
    set("warmup_steps", "schedule.warmup_steps", static_cast<std::int64_t>(warmup));
    set("warmup_ratio", "schedule.warmup_ratio", ratio);
  }
}

void Translation::take_evaluation() {
  const std::string strategy = keys_.text("eval_strategy", keys_.text("evaluation_strategy", "no"));
  require(strategy == "no" || strategy == "steps" || strategy == "epoch",
          "{}: eval_strategy is {}, expected no or steps", origin(), strategy);
  require(strategy != "epoch", "{}: eval_strategy is epoch; expected steps, with eval_steps", origin());
  const std::int64_t every = keys_.whole("eval_steps", keys_.whole("logging_steps", 500));
  if (has_valid_) {
    set("eval_steps", "evaluate.every_steps", strategy == "steps" ? every : 0);
    job_.settings.emplace_back("evaluate.batches=1000000000");  // all of it
  }
}

}  // namespace lockstep::llama_factory
