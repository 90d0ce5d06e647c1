// Packing: documents in files become tokenized datasets, one a split, in parallel and restartable.
//
// Work is cut into units that depend on the input and the options alone; each unit gives one shard per split, so the
// files that come out are the same to the byte on any number of ranks. A finished unit is recorded under OUT/.pack; a
// run that was interrupted at any moment goes on from there when it is started again with the same input and options.
// dataset.json of each split appears last.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/chat_encoder.h"
#include "data/dataset.h"

namespace lockstep {

// What a document is: a file, a line holding a JSON object, a run of ids between end-of-text ids, a JSON object holding
// a conversation, or one that ends in a better and a worse answer.
enum class PackFormat { kText, kJsonl, kTokens, kChat, kPairs };
// kChat or kPairs.
[[nodiscard]] constexpr bool has_conversations(PackFormat format) {
  return format == PackFormat::kChat || format == PackFormat::kPairs;
}

// "text", "jsonl", "tokens", "chat", "pairs". Throws Error(kUsage) for another name.
[[nodiscard]] PackFormat parse_pack_format(std::string_view name);
[[nodiscard]] std::string_view name_of(PackFormat format);
[[nodiscard]] DatasetKind dataset_kind(PackFormat format);

// Of an input that holds conversations.
struct ChatSource {
  ChatFormat format;
  std::uint64_t most = 0;  // conversations that are taken, from the beginning of each file; 0: all
  double weight = 1;       // how often each is taken for training; of 0.3, three in ten are taken
  // The entry of dataset_info.json that it is, empty: none. Entries count each for itself, also over the same file.
  std::string name = {};
  // What the entry's "columns" call which part: "query" -> "input". One that no row has is an error.
  std::map<std::string, std::string> columns = {};
};

// What may go of the datasets that an earlier run left in the folder: kOthers are those of other input or options.
enum class Overwrite : std::uint8_t { kNothing, kOthers, kAll };

struct PackOptions {
  PackFormat format = PackFormat::kText;
  std::string tokenizer;                      // "bytes", "bpe:SIZE", or a tokenizer.json, tokenizer.model or GGUF file
  std::string end_of_text;                    // text of the token between documents; empty: what the tokenizer names
  std::vector<std::filesystem::path> inputs;  // files, and folders that are searched recursively
  std::vector<ChatSource> chat_sources;       // of each input, or empty: all of them are the usual ones
  std::filesystem::path out;
  std::vector<double> split = {0.9, 0.05, 0.05};  // shares of train, valid, test; missing ones are 0
  std::uint64_t seed = 1337;
  std::string field = "text";  // of a JSON line
  std::uint64_t most = 0;      // JSON lines that are taken, from the beginning of each file; 0: all
  // Of conversations. One of more than max_tokens tokens is cut there, or left out; 0: there is no limit.
  // The template is one of ChatTemplate's, or kOwnTemplateName: that of the folder in which the tokenizer lies.
  std::string chat_template;
  TrainedTurns trained_turns = TrainedTurns::kAll;  // of pairs always the last
  std::uint64_t max_tokens = 0;
  bool drop_long = false;
  // File names (not paths) to take from folders: any that matches; empty: all. "!GLOB" matches what GLOB does not.
  std::vector<std::string> include;
  bool skip_binary = false;  // leave out files with a zero byte in their first 8 KiB
  Overwrite overwrite = Overwrite::kNothing;
  // What an error says of another dataset in `out` that may not go; empty: what differs, and to use --overwrite.
  std::string when_other = {};
  std::uint64_t memory_mib = 512;      // the longest line of JSON that is taken; it needs five times as much memory
  std::uint64_t shard_mib = 64;        // of input in a unit
  std::uint64_t bpe_sample_mib = 256;  // of the training split that bpe:SIZE is trained on
};

// The other ranks of the job; alone by default. Every rank makes the same calls in the same order.
struct PackPeers {
  int rank = 0;
  int world = 1;
  // Every rank's text, by rank.
  std::function<std::vector<std::string>(const std::string& mine)> all_gather = [](const std::string& mine) {
    return std::vector<std::string>{mine};
  };
  // `text` of rank `root`.
  std::function<std::string(const std::string& text, int root)> broadcast = [](const std::string& text, int) {
    return text;
  };
};

// How pack() talks to whoever started it.
struct PackHooks {
  // A stage ("count words", "pack") has worked through `done_bytes` of `total_bytes` of input: called when it begins,
  // with what earlier runs did, and then as it goes on until done == total. On rank 0 alone, as message().
  std::function<void(std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes)> progress =
      [](std::string_view, std::uint64_t, std::uint64_t) {};
  std::function<void(const std::string& line)> message = [](const std::string&) {};
  // Polled often on every rank; true on one of them stops all.
  std::function<bool()> stop_requested = [] { return false; };
};

struct PackedSplit {
  std::string name;  // "train", "valid", "test"
  std::filesystem::path folder;
  DatasetKind kind = DatasetKind::kText;
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  std::uint64_t files = 0;

  [[nodiscard]] std::string contents() const;  // "48 conversations"
};

struct PackResult {
  bool was_complete = false;        // the same input was already packed here with the same options: nothing was done
  bool replaced_other = false;      // a dataset of other input or options was here
  bool was_stopped = false;         // hooks.stop_requested() asked for it: finished units are kept for the next run
  std::vector<PackedSplit> splits;  // those with a share; none when stopped
};

// How many conversations the inputs hold, each counted once. Throws Error(kUsage) as pack() does.
[[nodiscard]] std::uint64_t count_conversations(const PackOptions& options);

// Collective over `peers`, and the same result or an Error on every rank: no rank is left waiting. Throws Error(kUsage)
// for bad options and bad input (in files: name and line), Error(kCorrupt, kUnsupported) for a tokenizer that is
// damaged or cannot encode the input: in all these cases nothing is left behind, and what was in `out` before is still
// there. Throws Error(kIo, kNoSpace) where the file system gave up: finished units are kept for the next run.
PackResult pack(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks);

}  // namespace lockstep
