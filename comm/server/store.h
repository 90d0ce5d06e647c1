// A server's part of the weights and the optimizer's moments, to which gradients are applied as they come, each once.
//
// What an update does is the caller's (UpdateRule): here is counted who has pushed what. A gradient is known by its
// rank and step: one that was applied already is dropped. With a journal (store_journal.h) an update is written down
// before it is made, so that a new Store over the same folder continues with the same bits. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "comm/server/store_protocol.h"

namespace lockstep::server {

// By how many updates of others gradients were behind.
struct Staleness {
  std::uint64_t pushes = 0;
  std::uint64_t sum = 0;
  std::uint64_t max = 0;

  void add(std::uint64_t updates);
  friend bool operator==(const Staleness&, const Staleness&) = default;
};

struct StoreState {
  std::string description;
  std::uint64_t elements = 0;  // of all servers
  ElementRange range;          // this one's
  std::uint64_t steps = 0;
  std::uint32_t max_staleness = 0;
  std::uint64_t applied = 0;
  std::vector<std::uint64_t> completed;  // steps, by rank
  Staleness staleness;
  std::vector<float> weights;  // of `range`, as are the moments
  std::vector<float> exp_avg;
  std::vector<float> exp_avg_sq;

  friend bool operator==(const StoreState&, const StoreState&) = default;
};

class UpdateRule {
 public:
  struct Update {
    std::uint64_t number = 0;  // updates before it
    float scale = 1;           // of the gradient
    std::span<const float> gradient;
    std::span<float> weights;
    std::span<float> exp_avg;
    std::span<float> exp_avg_sq;
  };
  virtual ~UpdateRule() = default;
  // A pure function of its arguments.
  virtual void apply(const Update& update) = 0;
  // Where `weights` are likely to be after `pushes` more updates, of which nothing is known but the moments.
  struct Outlook {
    std::uint64_t number = 0;  // updates so far
    double pushes = 0;
    std::span<float> weights;  // in place
    std::span<const float> exp_avg;
    std::span<const float> exp_avg_sq;
  };
  virtual void look_ahead(const Outlook& outlook) const = 0;
};
// The rule that `description` says, for elements `range` of the flat parameters of so many workers. Throws
// Error(kUsage, kCorrupt).
using MakeUpdateRule = std::function<std::unique_ptr<UpdateRule>(const std::string& description, ElementRange range)>;

class StoreJournal;

class Store {
 public:
  // A new one, not yet started; with zero weights and moments. `journal` may be null, and outlives it otherwise.
  Store(const Open& open, ElementRange range, int workers, const MakeUpdateRule& make_rule, StoreJournal* journal);
  // What a journal has kept: nullptr when there is nothing. Throws Error(kCorrupt, kIo), and what `make_rule` throws.
  [[nodiscard]] static std::unique_ptr<Store> recover(StoreJournal& journal, int workers,
                                                      const MakeUpdateRule& make_rule);

  [[nodiscard]] const StoreState& state() const { return state_; }
  [[nodiscard]] bool is_started() const { return is_started_; }
  // The weights as they are likely to be after so many more updates.
  [[nodiscard]] std::vector<float> weights_after(double pushes) const;
  // Where the first values go before start().
  [[nodiscard]] std::span<float> values(StoreArray array);
  // Every rank has done so many steps.
  void start(std::uint64_t completed);
  // Returns by how many updates it was behind; nothing for a gradient that was applied before. Throws Error(kCorrupt)
  // for one that is not the rank's next, Error(kIo, kNoSpace) when it cannot be written down: then nothing is changed.
  std::optional<std::uint64_t> apply(std::uint32_t rank, const Gradient& gradient, std::span<const float> values);

 private:
  Store(StoreState state, const MakeUpdateRule& make_rule, StoreJournal* journal);
  void update(std::uint32_t rank, const Gradient& gradient, std::span<const float> values);

  StoreState state_;
  std::unique_ptr<UpdateRule> rule_;
  StoreJournal* journal_;
  bool is_started_ = false;
};

}  // namespace lockstep::server
