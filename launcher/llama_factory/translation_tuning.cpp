// What a LLaMA-Factory file trains of its model (all, the last blocks, adapters), and on preferences towards what.
#include "base/error.h"
#include "launcher/llama_factory/translation.h"

namespace lockstep::llama_factory {

void Translation::take_tuning() {
  const std::string type = keys_.text("finetuning_type", "lora");
  require(type == "full" || type == "freeze" || type == "lora",
          "{}: finetuning_type is {}, expected full, freeze or lora", origin(), type);
  set("finetuning_type", "tune.method", type);
  const auto used = [&](const char* of, const char* key) { return type == of && keys_.find(key).has_value(); };
  if (type == "lora") {
    const std::int64_t rank = keys_.whole_from(1, "lora_rank", 8);
    set("lora_rank", "tune.rank", rank);
    set("lora_alpha", "tune.alpha", keys_.number("lora_alpha", static_cast<double>(2 * rank)));
    set("lora_dropout", "tune.dropout", keys_.number("lora_dropout", 0));
    set("lora_target", "tune.targets", keys_.text("lora_target", "all"));
    set("use_rslora", "tune.rslora", keys_.flag("use_rslora"));
    set("use_dora", "tune.dora", keys_.flag("use_dora"));
  }
  if (type == "freeze") {
    const std::int64_t layers = keys_.whole("freeze_trainable_layers", 2);
    require(layers >= 0, "{}: freeze_trainable_layers is {}: the first layers cannot be chosen, only the last",
            origin(), layers);
    set("freeze_trainable_layers", "tune.blocks", layers);
    keys_.refuse_unless("freeze_trainable_modules", "all", "blocks are trained whole");
  }
  if (used("lora", "additional_target")) {
    set("additional_target", "tune.also_train", keys_.text("additional_target", ""));
  }
  if (used("freeze", "freeze_extra_modules")) {
    set("freeze_extra_modules", "tune.also_train", keys_.text("freeze_extra_modules", ""));
  }
  for (const char* key :
       {"lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "additional_target",
        "freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "create_new_adapter"}) {
    static_cast<void>(keys_.find(key));  // of another method they mean nothing
  }
  for (const char* key : {"pissa_init", "pissa_convert", "use_galore", "use_apollo", "use_badam", "use_llama_pro",
                          "use_adam_mini", "use_muon", "use_swanlab", "pure_bf16", "upcast_layernorm"}) {
    keys_.refuse_unless_flag(key, false, "there is nothing like it yet");
  }
  if (keys_.find("neftune_noise_alpha")) {
    set("neftune_noise_alpha", "train.embedding_noise", keys_.number("neftune_noise_alpha", 0));
  }
  if (keys_.find("loraplus_lr_ratio")) {
    set("loraplus_lr_ratio", "tune.lora_plus", keys_.number("loraplus_lr_ratio", 1));
  }
  static_cast<void>(keys_.find("loraplus_lr_embedding"));  // of adapters of embeddings, which there are none of
}

void Translation::take_preference() {
  for (const char* key : {"ref_model", "ref_model_adapters", "reward_model", "simpo_gamma", "kto_chosen_weight"}) {
    require(!keys_.find(key), "{}: {} is {}, which cannot be honoured; the reference is the model itself", origin(),
            key, keys_.text(key, ""));
  }
  const std::string loss = keys_.text("pref_loss", "sigmoid");
  const double beta = keys_.number("pref_beta", 0.1);
  const double sft = keys_.number("pref_ftx", 0);
  const double smoothing = keys_.number("dpo_label_smoothing", 0);
  if (stage_ != "dpo") {
    return;
  }
  require(loss == "sigmoid" || loss == "hinge" || loss == "ipo",
          "{}: pref_loss is {}, which cannot be honoured; expected sigmoid, hinge or ipo", origin(), loss);
  set("pref_loss", "preference.loss", loss);
  set("pref_beta", "preference.beta", beta);
  set("pref_ftx", "preference.sft", sft);
  set("dpo_label_smoothing", "preference.label_smoothing", smoothing);
}

}  // namespace lockstep::llama_factory
