// What is asked of pack(): whether it goes together, what of it makes a difference to the datasets, and formats' names.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <system_error>

#include "base/error.h"
#include "base/hash.h"
#include "data/chat/own_template.h"
#include "data/pack/pack_impl.h"

namespace lockstep {
namespace {

constexpr std::string_view kBpePrefix = "bpe:";

void require_mib(std::string_view option, std::uint64_t mib) {
  constexpr std::uint64_t kMaxMib = std::uint64_t{1} << 20;
  require(mib >= 1 && mib <= kMaxMib, "{} is {}, expected 1 to {} MiB", option, mib, kMaxMib);
}

// All that makes a difference to what is packed.
std::string description_of(const ChatSource& source) {
  const ChatFormat& format = source.format;
  return fmt::format(
      "{} most, weight {}, form {}, {}", source.most, source.weight, static_cast<int>(format.form),
      fmt::join({format.prompt, format.query, format.response, format.history, format.messages, format.role,
                 format.content, format.user, format.assistant, format.observation, format.function, format.system_role,
                 format.system, format.tools, format.chosen, format.rejected},
                " "));
}

}  // namespace

std::optional<std::uint32_t> bpe_size_of(const std::string& tokenizer) {
  if (!tokenizer.starts_with(kBpePrefix)) {
    return std::nullopt;
  }
  const std::string digits = tokenizer.substr(kBpePrefix.size());
  std::uint32_t size = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
  require(error == std::errc() && end == digits.data() + digits.size() && size >= 257 && size <= (1U << 24),
          "--tokenizer {}: expected bpe:SIZE with a size from 257 to 16777216", tokenizer);
  return size;
}

void check_options(const PackOptions& options) {
  require(!options.tokenizer.empty(),
          "no --tokenizer given: bytes, bpe:SIZE, or a tokenizer.json, tokenizer.model or GGUF file");
  require(!options.out.empty(), "no --out given");
  require_mib("--memory", options.memory_mib);
  require_mib("--shard-mib", options.shard_mib);
  require_mib("--bpe-sample-mib", options.bpe_sample_mib);
  require(options.format != PackFormat::kTokens || !bpe_size_of(options.tokenizer),
          "--format tokens needs the tokenizer that made the tokens, not {}", options.tokenizer);
  require(options.end_of_text.empty() || (options.tokenizer != "bytes" && !bpe_size_of(options.tokenizer)),
          "--end-of-text is for a tokenizer that is read from a file, not for {}", options.tokenizer);
  static_cast<void>(checked_shares(options.split));
  const bool is_chat = has_conversations(options.format);
  require(!is_chat || !options.chat_template.empty(), "--format {} needs a --template: {}, or {}, the model's",
          name_of(options.format), fmt::join(ChatTemplate::names(), ", "), kOwnTemplateName);
  require(is_chat || options.chat_sources.empty(),
          "--dataset and --weights are for --format chat or pairs, --max-samples for those and jsonl");
  require(options.most == 0 || options.format == PackFormat::kJsonl,
          "--max-samples is for --format jsonl, chat or pairs");
  for (const ChatSource& source : options.chat_sources) {
    require(source.weight > 0 && source.weight <= 1000, "--weights holds {}, expected numbers above 0, at most 1000",
            source.weight);
  }
  require(is_chat || (options.chat_template.empty() && options.max_tokens == 0),
          "--template and --max-tokens are for --format chat or pairs");
  require(!is_chat || !bpe_size_of(options.tokenizer),
          "--format {} needs the tokenizer of the model that is to be trained, not {}", name_of(options.format),
          options.tokenizer);
  for (const ChatSource& source : options.chat_sources) {
    require(source.format.is_pairs == (options.format == PackFormat::kPairs), "--format is {}, and a dataset holds {}",
            name_of(options.format),
            source.format.is_pairs ? "pairs of answers (ranking)" : "conversations without a second answer");
  }
  require(!options.drop_long || options.max_tokens > 0, "--drop-long needs --max-tokens");
}

// Of several sources: which of the files are this one's.
std::string PackRun::files_of(std::size_t source) const {
  if (options_.chat_sources.size() < 2) {
    return {};
  }
  std::vector<InputFile> files;
  std::ranges::copy_if(plan_.files, std::back_inserter(files),
                       [&](const InputFile& file) { return file.input == source; });
  return ", files " + fingerprint_of(files);
}

PackSettings PackRun::settings() const {
  PackSettings settings = {{"format", std::string(name_of(options_.format))}};
  if (options_.format == PackFormat::kJsonl) {
    settings.emplace_back("field", options_.field);
    if (options_.most > 0) {
      settings.emplace_back("most", std::to_string(options_.most));
    }
  }
  if (has_conversations(options_.format)) {
    settings.emplace_back("template", own_template_.empty()
                                          ? options_.chat_template
                                          : fmt::format("{} {}", options_.chat_template, hash_of(own_template_).hex()));
    settings.emplace_back("train-on", options_.trained_turns == TrainedTurns::kAll ? "all" : "last");
    settings.emplace_back("max-tokens",
                          fmt::format("{}{}", options_.max_tokens, options_.drop_long ? ", drop longer" : ""));
    for (std::size_t i = 0; i < options_.chat_sources.size(); ++i) {
      settings.emplace_back(fmt::format("source {}", i + 1), description_of(options_.chat_sources[i]) + files_of(i));
    }
  }
  if (tokenizer_) {
    settings.emplace_back("tokenizer", tokenizer_->name() + " " + tokenizer_->fingerprint());
    settings.emplace_back("end-of-text", std::to_string(end_of_text_));
  } else {
    settings.emplace_back("tokenizer", fmt::format("{} on {} MiB", options_.tokenizer, options_.bpe_sample_mib));
  }
  settings.emplace_back("split", fmt::format("{},{},{}", shares_[0], shares_[1], shares_[2]));
  settings.emplace_back("seed", std::to_string(options_.seed));
  settings.emplace_back("shard-mib", std::to_string(options_.shard_mib));
  settings.emplace_back("input",
                        fmt::format("{} files of {} bytes, {}", plan_.files.size(), plan_.bytes, input_fingerprint_));
  return settings;
}

PackFormat parse_pack_format(std::string_view name) {
  for (const PackFormat format :
       {PackFormat::kText, PackFormat::kJsonl, PackFormat::kTokens, PackFormat::kChat, PackFormat::kPairs}) {
    if (name == name_of(format)) {
      return format;
    }
  }
  fail(ErrorCode::kUsage, "--format is {}, expected text, jsonl, tokens, chat or pairs", name);
}

std::string_view name_of(PackFormat format) {
  switch (format) {
    case PackFormat::kText:
      return "text";
    case PackFormat::kJsonl:
      return "jsonl";
    case PackFormat::kTokens:
      return "tokens";
    case PackFormat::kChat:
      return "chat";
    case PackFormat::kPairs:
      return "pairs";
  }
  return "";
}

DatasetKind dataset_kind(PackFormat format) {
  switch (format) {
    case PackFormat::kText:
    case PackFormat::kJsonl:
    case PackFormat::kTokens:
      return DatasetKind::kText;
    case PackFormat::kChat:
      return DatasetKind::kChat;
    case PackFormat::kPairs:
      return DatasetKind::kPairs;
  }
  return DatasetKind::kText;
}

}  // namespace lockstep
