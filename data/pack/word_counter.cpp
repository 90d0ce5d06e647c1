#include "data/pack/word_counter.h"

#include "data/pack/text_cuts.h"

namespace lockstep {
namespace {

class CountingSink : public DocumentSink {
 public:
  CountingSink(std::uint64_t max_bytes, const std::function<bool()>& stop_requested)
      : bytes_left_(max_bytes), stop_requested_(stop_requested) {}

  void begin(Split split, bool) override { counts_document_ = split == Split::kTrain; }
  void add(std::string_view text) override {
    if (!counts_document_) {
      return;
    }
    pending_ += text.substr(0, bytes_left_);
    bytes_left_ -= std::min<std::uint64_t>(bytes_left_, text.size());
    if (pending_.size() >= kCountBytes) {
      const std::size_t size = word_cut(pending_, 0, pending_.size() - 1);
      counts_.add(std::string_view(pending_).substr(0, size));
      pending_.erase(0, size);
    }
  }
  void add(std::span<const std::uint32_t>) override {}
  void add(Split, const Conversation&) override {}
  void end(bool) override {
    counts_.add(pending_);
    pending_.clear();
  }
  bool wants_more() override { return bytes_left_ > 0 && !stop_requested_(); }

  WordCounts take() { return std::move(counts_); }

 private:
  static constexpr std::size_t kCountBytes = std::size_t{1} << 18;
  // Fixed, because what a table forgets when it is full must not depend on the machine.
  static constexpr std::size_t kTableBytes = std::size_t{64} << 20;

  WordCounts counts_{WordCountLimits{kTableBytes}};
  std::uint64_t bytes_left_;
  const std::function<bool()>& stop_requested_;
  bool counts_document_ = false;
  std::string pending_;
};

}  // namespace

WordCounts count_words(const Plan& plan, const Unit& unit, const ReaderOptions& options, std::uint64_t max_bytes,
                       const std::function<bool()>& stop_requested) {
  CountingSink sink(max_bytes, stop_requested);
  read_unit(plan, unit, options, sink);
  return sink.take();
}

}  // namespace lockstep
