// The datasets of a LLaMA-Factory file: what is packed, and how it is read.
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "data/chat/dataset_info.h"
#include "data/text/tokenizer.h"
#include "launcher/llama_factory/translation.h"

namespace lockstep::llama_factory {

namespace fs = std::filesystem;

void Translation::take_data() {
  const std::vector<std::string> names = keys_.list("dataset");
  require(!names.empty(), "{}: dataset is missing", origin());
  constexpr const char* kWhatElse = "lockstep pack --help says what can be had";
  for (const auto& [key, only] :
       {std::pair{"mix_strategy", "concat"}, {"tool_format", ""}, {"default_system", ""}, {"interleave_probs", ""}}) {
    keys_.refuse_unless(key, only, kWhatElse);
  }
  for (const auto& [key, only] : {std::pair{"streaming", false},
                                  {"train_on_prompt", false},
                                  {"enable_thinking", true},
                                  {"predict_with_generate", false},
                                  {"eval_on_each_dataset", false},
                                  {"ignore_pad_token_for_loss", true}}) {
    keys_.refuse_unless_flag(key, only, kWhatElse);
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
      require(val_size < all, "{}: val_size is {}, expected fewer than the {} conversations", origin(), val_size, all);
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

PackOptions Translation::packed(const std::vector<std::string>& names, const fs::path& out) {
  return stage_ == "pt" ? texts(names, out) : chats(names, out);
}

PackOptions Translation::chats(const std::vector<std::string>& names, const fs::path& out) {
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
         1, name, dataset.columns});
  }
  finish(pack, out);
  return pack;
}

PackOptions Translation::texts(const std::vector<std::string>& names, const fs::path& out) {
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
    // Texts have no entries of their own: a file counts once.
    const auto same = std::ranges::find(pack.inputs, dataset.path);
    require(same == pack.inputs.end(), "{}: the datasets {} and {} are the same file, {}; name one of them", origin(),
            names[static_cast<std::size_t>(same - pack.inputs.begin())], name, dataset.path.string());
    pack.inputs.push_back(dataset.path);
  }
  require(kinds.size() == 1, "{}: the datasets {} differ in how they hold texts; pack them with lockstep pack",
          origin(), fmt::join(names, ", "));
  finish(pack, out);
  return pack;
}

void Translation::finish(PackOptions& pack, const fs::path& out) {
  pack.tokenizer = Tokenizer::file_of(folder_).string();
  pack.out = out;
  // What an earlier version of the file has packed may go, but not what a run is trained on that goes on.
  const bool is_used = fs::exists(out_ / "checkpoints") || fs::exists(out_ / "metrics.jsonl");
  const bool goes_on = resume_ != "none" && !job_.starts_over_on_other_data;
  pack.overwrite = is_used && goes_on ? Overwrite::kNothing : Overwrite::kOthers;
  pack.when_other = fmt::format(
      "{}: the run in output_dir, {}, is trained on other data than this asks for; dataset, eval_dataset, dataset_dir, "
      "template, cutoff_len, max_samples, val_size, mask_history, model_name_or_path or files that they name have "
      "changed since: undo that, name another output_dir, or start over with --resume none",
      origin(), out_.string());
  pack.split = {1, 0, 0};
}

std::uint64_t Translation::most_samples() {
  return keys_.find("max_samples") ? static_cast<std::uint64_t>(keys_.whole_from(1, "max_samples", 1)) : 0;
}

std::int64_t Translation::sequence() { return std::min(keys_.whole_from(2, "cutoff_len", 2048), context_); }

}  // namespace lockstep::llama_factory
