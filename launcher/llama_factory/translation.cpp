#include "launcher/llama_factory/translation.h"

#include "base/error.h"

namespace lockstep::llama_factory {
namespace {

// How the Trainer of transformers, on which LLaMA-Factory stands, works inside; nothing of it changes the result here.
constexpr const char* kInternal[] = {"preprocessing_num_workers",
                                     "preprocessing_batch_size",
                                     "dataloader_num_workers",
                                     "dataloader_pin_memory",
                                     "overwrite_cache",
                                     "plot_loss",
                                     "report_to",
                                     "run_name",
                                     "logging_dir",
                                     "logging_strategy",
                                     "logging_first_step",
                                     "trust_remote_code",
                                     "use_fast_tokenizer",
                                     "low_cpu_mem_usage",
                                     "flash_attn",
                                     "enable_liger_kernel",
                                     "use_unsloth",
                                     "gradient_checkpointing_kwargs",
                                     "disable_gradient_checkpointing",
                                     "ddp_find_unused_parameters",
                                     "remove_unused_columns",
                                     "include_num_input_tokens_seen",
                                     "include_tokens_per_second",
                                     "per_device_eval_batch_size",
                                     "eval_accumulation_steps",
                                     "prediction_loss_only",
                                     "save_only_model",
                                     "save_safetensors",
                                     "save_on_each_node",
                                     "hf_hub_token",
                                     "cache_dir",
                                     "fsdp",
                                     "fsdp_config",
                                     "local_rank",
                                     "do_eval",
                                     "push_to_hub"};

}  // namespace

LlamaFactoryJob Translation::run() {
  stage_ = keys_.text("stage", "sft");
  require(stage_ == "sft" || stage_ == "pt" || stage_ == "dpo",
          "{}: stage is {}, which cannot be honoured; expected pt, sft or dpo", origin(), stage_);
  require(keys_.flag("do_train"), "{}: do_train is not true; only training is done from such a file", origin());
  keys_.refuse_unless_flag("do_predict", false, "lockstep eval and lockstep generate do that");
  take_model();
  take_tuning();
  take_preference();
  take_output();
  take_data();
  take_batch();
  take_optimizer();
  take_evaluation();
  take_internals();
  keys_.check_all_known();
  return std::move(job_);
}

void Translation::take_internals() {
  for (const char* key : kInternal) {
    if (const auto value = keys_.find_anything(key)) {
      note(fmt::format("{}: {} -> changes nothing here", key, *value));
    }
  }
}

}  // namespace lockstep::llama_factory
