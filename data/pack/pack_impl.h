// The inside of pack(). Stages of a run are in pack.cpp, what options may be and how they make runs differ in
// pack_options.cpp, where the tokenizer comes from in pack_tokenizer.cpp, what is left of a run that is finished in
// pack_publish.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/chat_encoder.h"
#include "data/pack/document_reader.h"
#include "data/pack/inputs.h"
#include "data/pack/pack.h"
#include "data/pack/plan.h"
#include "data/pack/split.h"
#include "data/pack/unit_packer.h"
#include "data/pack/work_folder.h"
#include "data/text/tokenizer.h"
#include "data/text/word_counts.h"

namespace lockstep {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
inline constexpr const char* kTrainedName = "tokenizer.json";  // in the work folder: the vocabulary of bpe:SIZE
inline constexpr const char* kStopped = "stop";  // a rank's result of a round in which it was asked to stop

// Throws Error(kUsage) for options that mean nothing, or nothing together.
void check_options(const PackOptions& options);

// SIZE of "bpe:SIZE"; nothing for other tokenizers. Throws Error(kUsage) for another SIZE than there can be.
[[nodiscard]] std::optional<std::uint32_t> bpe_size_of(const std::string& tokenizer);

// The run on one rank, stage by stage. Every rank makes the same calls in the same order.
class PackRun {
 public:
  PackRun(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks)
      : options_(options), peers_(peers), hooks_(hooks), shares_(checked_shares(options.split)) {}

  PackResult run();

 private:
  void find_files();
  void make_the_plan();
  [[nodiscard]] PackSettings settings() const;
  [[nodiscard]] std::string files_of(std::size_t source) const;
  [[nodiscard]] bool is_complete(const WorkFolder& work) const;
  void check_columns() const;
  void begin(WorkFolder& work);
  void check_room(const WorkFolder& work) const;
  [[nodiscard]] std::uint64_t least_shard_bytes(std::uint64_t input_bytes) const;
  [[nodiscard]] bool pack_units(const WorkFolder& work);
  void take_records(const std::vector<std::string>& records);
  void publish(WorkFolder& work);
  [[nodiscard]] PackResult published(const WorkFolder& work) const;

  void load_tokenizer();
  [[nodiscard]] bool train_tokenizer(const WorkFolder& work);
  [[nodiscard]] std::optional<WordCounts> count_corpus();
  void set_tokenizer(Tokenizer tokenizer);

  void report(std::string_view stage, std::uint64_t done_bytes) const {
    if (peers_.rank == 0) {
      hooks_.progress(stage, done_bytes, plan_.bytes);
    }
  }
  [[nodiscard]] ReaderOptions reader_options() const {
    return {options_.field, options_.memory_mib * kMiB, end_of_text_, tokenizer_ ? tokenizer_->vocab_size() : 0};
  }

  const PackOptions& options_;
  const PackPeers& peers_;
  const PackHooks& hooks_;
  Shares shares_;
  std::vector<InputFile> files_;
  std::string input_fingerprint_;
  std::optional<Tokenizer> tokenizer_;  // empty until a bpe:SIZE is trained
  std::uint32_t end_of_text_ = 0;
  std::string own_template_;  // OwnTemplate::to_json(), empty: one of ours
  std::optional<ChatEncoder> chat_;
  Plan plan_;
  std::vector<std::optional<UnitRecord>> records_;  // of finished units
};

}  // namespace lockstep
