#include "data/pack/unit_packer.h"

#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "data/pack/text_cuts.h"
#include "data/shard_writer.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// Encodes a text that arrives in blocks: what can be encoded whatever follows is, the rest waits for the next block.
class BlockEncoder {
 public:
  explicit BlockEncoder(Encoder& encoder) : encoder_(encoder) {}

  // `starts_document` is false for a text that another unit began.
  void begin(bool starts_document) { place_ = starts_document ? TextPlace::kStart : TextPlace::kInside; }
  // The ids that are certain now; valid until the next call.
  [[nodiscard]] std::span<const std::uint32_t> add(std::string_view text) {
    ids_.clear();
    pending_ += text;
    if (pending_.size() < kEncodeBytes) {
      return ids_;
    }
    std::size_t size = encoder_.tokenizer().safe_prefix(pending_);
    if (size == 0 && pending_.size() > kMaxPendingBytes) {
      size = word_cut(pending_, 0, pending_.size() - 1);
    }
    encode(size);
    return ids_;
  }
  [[nodiscard]] std::span<const std::uint32_t> finish() {
    ids_.clear();
    encode(pending_.size());
    return ids_;
  }

 private:
  static constexpr std::size_t kEncodeBytes = std::size_t{1} << 18;
  // A document without a safe place for this long, or with a pattern that is not known, is cut between two words.
  static constexpr std::size_t kMaxPendingBytes = std::size_t{8} << 20;

  void encode(std::size_t size) {
    encoder_.encode(std::string_view(pending_).substr(0, size), ids_, SpecialTokens::kAsText, place_);
    pending_.erase(0, size);
    place_ = size > 0 ? TextPlace::kInside : place_;
  }

  Encoder& encoder_;
  TextPlace place_ = TextPlace::kStart;  // of pending_
  std::string pending_;
  std::vector<std::uint32_t> ids_;
};

// A shard under a temporary name until finish(); without that nothing is left of it.
class UnitShard {
 public:
  UnitShard(const fs::path& path, DType dtype, DatasetKind kind)
      : path_(path), partial_(unique_partial_of(path)), writer_(partial_, dtype, kind) {}
  ~UnitShard() {
    if (!is_finished_) {
      std::error_code ignored;  // there is an error to report already, or the run was stopped
      fs::remove(partial_, ignored);
    }
  }
  UnitShard(const UnitShard&) = delete;
  UnitShard& operator=(const UnitShard&) = delete;

  [[nodiscard]] ShardWriter& writer() { return writer_; }

  PackedShard finish() {
    writer_.close();
    PackedShard shard{writer_.tokens(), writer_.documents(), writer_.targets(), fs::file_size(partial_),
                      hash_of_file(partial_).hex()};
    if (::rename(partial_.c_str(), path_.c_str()) != 0) {
      fail_errno(fmt::format("rename {} to {}", partial_.string(), path_.string()));
    }
    is_finished_ = true;
    return shard;
  }

 private:
  fs::path path_;
  fs::path partial_;
  ShardWriter writer_;
  bool is_finished_ = false;
};

// Appends documents to the shards of their splits.
class ShardSink : public DocumentSink {
 public:
  ShardSink(const UnitJob& job, Encoder& encoder)
      : job_(job),
        encoder_(encoder),
        blocks_(encoder),
        end_of_text_(job.reader.end_of_text),
        dtype_(job.reader.vocabulary_size <= 65536 ? DType::kU16 : DType::kU32) {}

  void begin(Split split, bool starts_document) override {
    writer_ = &writer_of(split);
    blocks_.begin(starts_document);
    if (starts_document) {
      writer_->begin_document();
    }
  }
  void add(std::string_view text) override { writer_->append(blocks_.add(text)); }
  void add(std::span<const std::uint32_t> ids) override { writer_->append(ids); }
  void end(bool ends_document) override {
    writer_->append(blocks_.finish());
    if (ends_document) {
      writer_->append({&end_of_text_, 1});
    }
  }
  void add(Split split, const Conversation& conversation) override {
    bool is_cut = encode(conversation, chat_);
    bool has_targets = chat_.targets() > 0;
    if (job_.plan.format == PackFormat::kPairs) {
      Conversation other = conversation;
      other.turns.back().text = conversation.rejected;
      is_cut = encode(other, rejected_) || is_cut;
      // What is left of two answers may be the same.
      has_targets = has_targets && rejected_.targets() > 0 && chat_.ids != rejected_.ids;
    }
    dropped_ += has_targets ? 0 : 1;
    cut_ += has_targets && is_cut ? 1 : 0;
    if (has_targets) {
      writer_of(split).append_chat(chat_.ids, chat_.trained);
      if (job_.plan.format == PackFormat::kPairs) {
        writer_of(split).append_chat(rejected_.ids, rejected_.trained);
      }
    }
  }
  bool wants_more() override {
    stopped_ = stopped_ || job_.stop_requested();
    return !stopped_;
  }

  [[nodiscard]] bool stopped() const { return stopped_; }
  UnitRecord finish() {
    UnitRecord record;
    record.unit = job_.unit;
    record.cut = cut_;
    record.dropped = dropped_;
    for (std::size_t s = 0; s < kSplits; ++s) {
      if (shards_[s]) {
        record.shards[s] = shards_[s]->finish();
      }
    }
    sync_folder(job_.folder);
    return record;
  }

 private:
  // Returns whether its end is missing; nothing is left of one that is left out.
  bool encode(const Conversation& conversation, EncodedChat& chat) {
    const ChatPacking& packing = *job_.chat;
    packing.encoder.encode(conversation, encoder_, chat);
    const bool is_weighted = std::ranges::any_of(conversation.turns, [](const Turn& turn) { return !turn.is_trained; });
    require(chat.targets() > 0 || !is_weighted, "there is no answer to train on: \"weight\" is 0");
    if (packing.max_tokens == 0 || chat.ids.size() <= packing.max_tokens) {
      return false;
    }
    chat.ids.resize(packing.drop_long ? 0 : packing.max_tokens);
    chat.trained.resize(chat.ids.size());
    return true;
  }

  ShardWriter& writer_of(Split split) {
    std::optional<UnitShard>& shard = shards_[static_cast<std::size_t>(split)];
    if (!shard) {
      shard.emplace(job_.folder / unit_shard_name(job_.unit, split), dtype_, dataset_kind(job_.plan.format));
    }
    return shard->writer();
  }

  const UnitJob& job_;
  Encoder& encoder_;
  BlockEncoder blocks_;
  EncodedChat chat_;
  EncodedChat rejected_;
  std::uint64_t cut_ = 0;
  std::uint64_t dropped_ = 0;
  std::uint32_t end_of_text_;
  DType dtype_;
  std::array<std::optional<UnitShard>, kSplits> shards_;
  ShardWriter* writer_ = nullptr;
  bool stopped_ = false;
};

}  // namespace

fs::path unique_partial_of(fs::path path) {
  return path += fmt::format(".{:08x}{}", std::random_device()(), kPartialSuffix);
}

std::string unit_shard_name(std::size_t unit, Split split) {
  return fmt::format("{}-{:05}.h5", kSplitNames[static_cast<std::size_t>(split)], unit);
}

std::string to_json(const UnitRecord& record) {
  nlohmann::ordered_json json = {{"unit", record.unit}, {"cut", record.cut}, {"dropped", record.dropped}};
  for (std::size_t s = 0; s < kSplits; ++s) {
    const PackedShard& shard = record.shards[s];
    json[std::string(kSplitNames[s])] = {{"tokens", shard.tokens},
                                         {"documents", shard.documents},
                                         {"targets", shard.targets},
                                         {"size_bytes", shard.size_bytes},
                                         {"xxh3_128", shard.xxh3_128}};
  }
  return json.dump() + "\n";
}

UnitRecord parse_unit_record(std::string_view text, std::string_view where) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    UnitRecord record;
    record.unit = json.at("unit").get<std::size_t>();
    record.cut = json.at("cut").get<std::uint64_t>();
    record.dropped = json.at("dropped").get<std::uint64_t>();
    for (std::size_t s = 0; s < kSplits; ++s) {
      const nlohmann::json& shard = json.at(std::string(kSplitNames[s]));
      record.shards[s] = {.tokens = shard.at("tokens").get<std::uint64_t>(),
                          .documents = shard.at("documents").get<std::uint64_t>(),
                          .targets = shard.at("targets").get<std::uint64_t>(),
                          .size_bytes = shard.at("size_bytes").get<std::uint64_t>(),
                          .xxh3_128 = shard.at("xxh3_128").get<std::string>()};
    }
    return record;
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kCorrupt, "{}: not the record of a packed unit: {}", where, error.what());
  }
}

bool pack_unit(const UnitJob& job, Encoder& encoder, UnitRecord& record) {
  ShardSink sink(job, encoder);
  read_unit(job.plan, job.plan.units[job.unit], job.reader, sink);
  if (sink.stopped()) {
    return false;
  }
  record = sink.finish();
  return true;
}

}  // namespace lockstep
