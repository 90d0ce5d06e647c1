#include "launcher/llama_factory/llama_factory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "data/chat/dataset_info.h"
#include "data/text/tokenizer.h"
#include "trainer/model/architecture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

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
                                     "greater_is_better",
                                     "metric_for_best_model",
                                     "push_to_hub"};

// The values of the file, each of which is asked for by name; what nobody asked for is unknown.
class Keys {
 public:
  Keys(const YAML::Node& document, std::string origin) : origin_(std::move(origin)) {
    for (const auto& entry : document) {
      const auto name = entry.first.as<std::string>();
      require(values_.emplace(name, text_of(name, entry.second)).second, "{}: {} stands here for the second time",
              origin_, name);
    }
  }

  // Nothing where the key is missing or null.
  [[nodiscard]] std::optional<std::string> find(const std::string& key) {
    asked_.insert(key);
    const auto found = values_.find(key);
    return found == values_.end() || found->second.empty() ? std::nullopt : std::optional(found->second);
  }
  [[nodiscard]] std::string text(const std::string& key, std::string otherwise) {
    return find(key).value_or(std::move(otherwise));
  }
  [[nodiscard]] double number(const std::string& key, double otherwise) {
    const auto value = find(key);
    if (!value) {
      return otherwise;
    }
    double number = 0;
    const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
    require(error == std::errc() && end == value->data() + value->size(), "{}: {} is {}, expected a number", origin_,
            key, *value);
    return number;
  }
  [[nodiscard]] std::int64_t whole(const std::string& key, std::int64_t otherwise) {
    const double value = number(key, static_cast<double>(otherwise));
    require(std::abs(value) < 1e15 && value == std::floor(value), "{}: {} is {}, expected a whole number", origin_, key,
            value);
    return static_cast<std::int64_t>(value);
  }
  [[nodiscard]] std::int64_t whole_from(std::int64_t least, const std::string& key, std::int64_t otherwise) {
    const std::int64_t value = whole(key, otherwise);
    require(value >= least, "{}: {} is {}, expected at least {}", origin_, key, value, least);
    return value;
  }
  [[nodiscard]] double number_from(double least, const std::string& key, double otherwise) {
    const double value = number(key, otherwise);
    require(value >= least, "{}: {} is {}, expected at least {}", origin_, key, value, least);
    return value;
  }
  [[nodiscard]] bool flag(const std::string& key, bool otherwise = false) {
    const auto value = find(key);
    if (!value) {
      return otherwise;
    }
    std::string lower = *value;
    std::ranges::transform(lower, lower.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    require(lower == "true" || lower == "false", "{}: {} is {}, expected true or false", origin_, key, *value);
    return lower == "true";
  }
  [[nodiscard]] std::vector<std::string> list(const std::string& key) {
    std::vector<std::string> items;
    const std::string value = text(key, "");
    for (std::size_t begin = 0; begin < value.size();) {
      const std::size_t end = std::min(value.find(',', begin), value.size());
      std::string item = value.substr(begin, end - begin);
      item.erase(std::min(item.size(), item.find_last_not_of(' ') + 1));
      item.erase(0, std::min(item.size(), item.find_first_not_of(' ')));
      if (!item.empty()) {
        items.push_back(item);
      }
      begin = end + 1;
    }
    return items;
  }
  // For a key that asks for something else than `expected`.
  void refuse_unless(const std::string& key, const std::string& expected, const std::string& why) {
    const std::string value = text(key, expected);
    require(value == expected, "{}: {} is {}, which cannot be honoured: {}", origin_, key, value, why);
  }
  void check_all_known() const {
    for (const auto& [key, value] : values_) {
      require(asked_.contains(key) || value.empty(),
              "{}: {} is {}, which is not known here; remove it to go on without", origin_, key, value);
    }
  }
  [[nodiscard]] const std::string& origin() const { return origin_; }

 private:
  // Scalars as they are written, lists with commas between.
  std::string text_of(const std::string& name, const YAML::Node& node) const {
    if (node.IsNull()) {
      return {};
    }
    if (node.IsScalar()) {
      const std::string text = node.Scalar();
      return text == "null" || text == "None" || text == "none" ? std::string() : text;
    }
    require(node.IsSequence(), "{}: {} is a map, expected a value or a list", origin_, name);
    std::string list;
    for (const YAML::Node& item : node) {
      require(item.IsScalar(), "{}: {} holds a list or map, expected values", origin_, name);
      list += list.empty() ? "" : ",";
      list += item.Scalar();
    }
    return list;
  }

  std::string origin_;
  std::map<std::string, std::string> values_;
  std::set<std::string> asked_;
};

class Translation {
 public:
  Translation(Keys keys, int world) : keys_(std::move(keys)), world_(std::max(1, world)) {}

  LlamaFactoryJob run() {
    stage_ = keys_.text("stage", "sft");
    require(stage_ == "sft" || stage_ == "pt" || stage_ == "dpo",
            "{}: stage is {}, which cannot be honoured; expected pt, sft or dpo", origin(), stage_);
    require(keys_.flag("do_train"), "{}: do_train is not true; only training is done from such a file", origin());
    keys_.refuse_unless("do_predict", "false", "lockstep eval and lockstep generate do that");
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

 private:
  [[nodiscard]] const std::string& origin() const { return keys_.origin(); }

  template <typename T>
  void set(const std::string& key, const char* setting, const T& value) {
    job_.settings.push_back(fmt::format("{}={}", setting, value));
    const auto written = keys_.find(key);
    note(fmt::format("{}: {} -> {}", key, written.value_or("(default)"), job_.settings.back()));
  }
  void note(std::string line) { job_.notes.push_back(std::move(line)); }

  void take_model() {
    const auto model = keys_.find("model_name_or_path");
    require(model.has_value(), "{}: model_name_or_path is missing", origin());
    folder_ = *model;
    require(fs::is_regular_file(folder_ / "config.json"),
            "{}: model_name_or_path is {}, where no config.json is; expected a folder with a model (fetch it first)",
            origin(), *model);
    set("model_name_or_path", "model.from", *model);
    context_ = from_hf_config(read_file(folder_ / "config.json"), (folder_ / "config.json").string()).context;
    take_quantization();
    for (const char* key : {"adapter_name_or_path", "adapter_folder", "rope_scaling", "shift_attn", "mixture_of_depths",
                            "resize_vocab", "tokenized_path", "new_special_tokens", "add_tokens", "visual_inputs"}) {
      require(!keys_.find(key), "{}: {} is {}, which cannot be honoured", origin(), key, keys_.text(key, ""));
    }
  }

  void take_quantization() {
    const std::int64_t bits = keys_.whole("quantization_bit", 0);
    require(bits == 0 || bits == 4 || bits == 8, "{}: quantization_bit is {}, expected 4 or 8", origin(), bits);
    if (bits > 0) {
      set("quantization_bit", "tune.quantize", bits == 4 ? "nf4" : "q8_0");
    }
    keys_.refuse_unless("quantization_type", "nf4", "4 bits are nf4");
    const std::string method = keys_.text("quantization_method", "bnb");
    require(method == "bnb" || method == "bitsandbytes" || method == "BNB",
            "{}: quantization_method is {}, expected bnb", origin(), method);
    if (keys_.find("double_quantization")) {
      note("double_quantization: scales of nf4 stay in fp32 here, 4.5 bits a weight in all");
    }
  }

  void take_tuning() {
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
      keys_.refuse_unless(key, "false", "there is nothing like it yet");
    }
    if (keys_.find("neftune_noise_alpha")) {
      set("neftune_noise_alpha", "train.embedding_noise", keys_.number("neftune_noise_alpha", 0));
    }
    if (keys_.find("loraplus_lr_ratio")) {
      set("loraplus_lr_ratio", "tune.lora_plus", keys_.number("loraplus_lr_ratio", 1));
    }
    static_cast<void>(keys_.find("loraplus_lr_embedding"));  // of adapters of embeddings, which there are none of
  }

  void take_preference() {
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

  void take_output() {
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
    require(resume == "true" || resume == "false",
            "{}: resume_from_checkpoint is {}: a run goes on by itself, and --resume DIR says from another place",
            origin(), resume);
    if (keys_.flag("overwrite_output_dir")) {
      note(
          "overwrite_output_dir: a run that is in output_dir goes on; remove the folder, or --resume none, to start "
          "over");
    }
    keys_.refuse_unless("group_by_length", "false", "data.packing has samples of about one length");
    if (keys_.flag("load_best_model_at_end")) {
      set("load_best_model_at_end", "checkpoint.keep_best", true);
    }
  }

  // One dataset of conversations, from the entries of `names`.
  PackOptions chats(const std::vector<std::string>& names, const fs::path& out) {
    PackOptions pack;
    pack.format = stage_ == "dpo" ? PackFormat::kPairs : PackFormat::kChat;
    pack.chat_template = keys_.text("template", "");
    require(!pack.chat_template.empty(), "{}: template is missing", origin());
    pack.trained_turns = keys_.flag("mask_history") ? TrainedTurns::kLast : TrainedTurns::kAll;
    pack.max_tokens = static_cast<std::uint64_t>(sequence());
    const auto most = most_samples();
    for (const std::string& name : names) {
      const NamedDataset dataset = find_named_dataset(keys_.text("dataset_dir", "data"), name);
      require(dataset.format.is_pairs == (stage_ == "dpo"), "{}: dataset {} holds {}, and stage is {}", origin(), name,
              dataset.format.is_pairs ? "pairs of answers (ranking)" : "no pairs of answers (ranking)", stage_);
      pack.inputs.push_back(dataset.path);
      pack.chat_sources.push_back(
          {dataset.format, most == 0 || dataset.most == 0 ? std::max(most, dataset.most) : std::min(most, dataset.most),
           1});
    }
    finish(pack, out);
    return pack;
  }
  // Of texts: files of JSON lines, or plain ones.
  PackOptions texts(const std::vector<std::string>& names, const fs::path& out) {
    static_cast<void>(keys_.find("template"));
    PackOptions pack;
    const auto most = most_samples();
    std::set<std::string> kinds;
    for (const std::string& name : names) {
      const NamedDataset dataset = find_named_dataset(keys_.text("dataset_dir", "data"), name);
      const bool is_lines = dataset.path.extension() == ".jsonl";
      require(is_lines || dataset.path.extension() == ".txt", "{}: dataset {} is {}; stage pt takes .jsonl and .txt",
              origin(), name, dataset.path.string());
      pack.format = is_lines ? PackFormat::kJsonl : PackFormat::kText;
      pack.field = is_lines ? dataset.format.prompt : "text";
      pack.most = is_lines ? most : 0;  // a plain file is one text
      kinds.insert(fmt::format("{} {}", dataset.path.extension().string(), pack.field));
      pack.inputs.push_back(dataset.path);
    }
    require(kinds.size() == 1, "{}: the datasets {} differ in how they hold texts; pack them with lockstep pack",
            origin(), fmt::join(names, ", "));
    finish(pack, out);
    return pack;
  }
  void finish(PackOptions& pack, const fs::path& out) {
    pack.tokenizer = Tokenizer::file_of(folder_).string();
    pack.out = out;
    // What an earlier version of the file has packed may go, but not what a run is trained on.
    const bool is_used = fs::exists(out_ / "checkpoints") || fs::exists(out_ / "metrics.jsonl");
    pack.overwrite = is_used ? Overwrite::kNothing : Overwrite::kOthers;
    pack.split = {1, 0, 0};
  }
  PackOptions packed(const std::vector<std::string>& names, const fs::path& out) {
    return stage_ == "pt" ? texts(names, out) : chats(names, out);
  }

  // 0: all.
  [[nodiscard]] std::uint64_t most_samples() {
    return keys_.find("max_samples") ? static_cast<std::uint64_t>(keys_.whole_from(1, "max_samples", 1)) : 0;
  }

  [[nodiscard]] std::int64_t sequence() { return std::min(keys_.whole_from(2, "cutoff_len", 2048), context_); }

  void take_data() {
    const std::vector<std::string> names = keys_.list("dataset");
    require(!names.empty(), "{}: dataset is missing", origin());
    for (const auto& [key, only] : {std::pair{"mix_strategy", "concat"},
                                    {"streaming", "false"},
                                    {"train_on_prompt", "false"},
                                    {"tool_format", ""},
                                    {"default_system", ""},
                                    {"enable_thinking", "true"},
                                    {"interleave_probs", ""},
                                    {"predict_with_generate", "false"},
                                    {"eval_on_each_dataset", "false"},
                                    {"ignore_pad_token_for_loss", "true"}}) {
      keys_.refuse_unless(key, only, "lockstep pack --help says what can be had");
    }
    job_.packs.push_back(packed(names, out_ / "data"));
    PackOptions& train = job_.packs.front();
    const std::vector<std::string> held_out = keys_.list("eval_dataset");
    const double val_size = keys_.number("val_size", 0);
    require(held_out.empty() || val_size == 0, "{}: expected eval_dataset or val_size, not both", origin());
    if (val_size > 0) {
      double share = val_size;
      if (val_size >= 1) {
        require(stage_ != "pt", "{}: val_size is {}, expected a share below 1 in stage pt", origin(), val_size);
        const auto all = static_cast<double>(count_conversations(train));
        require(val_size < all, "{}: val_size is {}, expected fewer than the {} conversations", origin(), val_size,
                all);
        share = val_size / all;
      }
      train.split = {1 - share, share, 0};
    }
    note(fmt::format("dataset, template, cutoff_len, ...: {} -> packed into {}", fmt::join(names, ", "),
                     train.out.string()));
    set("dataset", "data.train", (train.out / "train").string());
    if (val_size > 0) {
      set("val_size", "data.valid", (train.out / "valid").string());
    } else if (!held_out.empty()) {
      job_.packs.push_back(packed(held_out, out_ / "data-eval"));
      set("eval_dataset", "data.valid", (job_.packs.back().out / "train").string());
    }
    has_valid_ = val_size > 0 || !held_out.empty();
    set("cutoff_len", "data.sequence", sequence());
    const bool packing = keys_.flag("packing", stage_ == "pt");
    require(stage_ != "pt" || packing, "{}: packing is false, which cannot be honoured: texts follow one another",
            origin());
    const bool neat = keys_.flag("neat_packing");
    if (stage_ != "pt" && (packing || neat)) {
      set(neat ? "neat_packing" : "packing", "data.packing", true);
      note("conversations in one sample never attend to one another here, with neat_packing or without");
    }
  }

  void take_batch() {
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
    set(fp16 ? "fp16" : "bf16", "train.precision", bf16 || fp16 ? "bf16" : "fp32");
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

  void take_optimizer() {
    const std::string optimizer = keys_.text("optim", "adamw_torch");
    require(optimizer.starts_with("adamw_torch"), "{}: optim is {}, expected adamw_torch", origin(), optimizer);
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
    require(
        known.contains(schedule),
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

  void take_evaluation() {
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

  void take_internals() {
    for (const char* key : kInternal) {
      if (const auto value = keys_.find(key)) {
        note(fmt::format("{}: {} -> changes nothing here", key, *value));
      }
    }
  }

  Keys keys_;
  int world_;
  std::string stage_;
  fs::path folder_;  // of the model
  fs::path out_;
  std::int64_t context_ = 0;
  bool has_valid_ = false;
  LlamaFactoryJob job_;
};

}  // namespace

bool is_llama_factory(std::string_view yaml) {
  try {
    const YAML::Node document = YAML::Load(std::string(yaml));
    return document.IsMap() && (document["model_name_or_path"] || document["finetuning_type"] || document["stage"]);
  } catch (const YAML::Exception&) {
    return false;
  }
}

LlamaFactoryJob read_llama_factory(std::string_view yaml, const std::string& origin, int world) {
  try {
    return Translation(Keys(YAML::Load(std::string(yaml)), origin), world).run();
  } catch (const YAML::Exception& error) {
    fail(ErrorCode::kUsage, "{}:{}: this is not YAML: {}", origin, error.mark.line + 1, error.msg);
  }
}

}  // namespace lockstep
