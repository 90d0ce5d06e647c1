#include "comm/server/store.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "comm/server/store_journal.h"

namespace lockstep::server {
namespace {

StoreState new_state(const Open& open, ElementRange range, int workers) {
  StoreState state;
  state.description = open.description;
  state.elements = open.elements;
  state.range = range;
  state.steps = open.steps;
  state.max_staleness = open.max_staleness;
  state.completed.resize(static_cast<std::size_t>(workers));
  state.weights.resize(range.size());
  state.exp_avg.resize(range.size());
  state.exp_avg_sq.resize(range.size());
  return state;
}

// Updates of others since the weights that the gradient was computed from. A rank's own come in between only when it
// repeats itself, which is no update.
std::uint64_t others_since(const StoreState& state, const Gradient& gradient) {
  return state.applied - std::min(state.applied, gradient.version);
}

}  // namespace

void Staleness::add(std::uint64_t updates) {
  ++pushes;
  sum += updates;
  max = std::max(max, updates);
}

Store::Store(StoreState state, const MakeUpdateRule& make_rule, StoreJournal* journal)
    : state_(std::move(state)), rule_(make_rule(state_.description, state_.range)), journal_(journal) {}

Store::Store(const Open& open, ElementRange range, int workers, const MakeUpdateRule& make_rule, StoreJournal* journal)
    : Store(new_state(open, range, workers), make_rule, journal) {}

std::unique_ptr<Store> Store::recover(StoreJournal& journal, int workers, const MakeUpdateRule& make_rule) {
  std::optional<StoreState> state = journal.load();
  if (!state) {
    return nullptr;
  }
  require(state->completed.size() == static_cast<std::size_t>(workers),
          "{} was kept by a server for {} workers, but this one was started with --workers {}",
          journal.folder().string(), state->completed.size(), workers);
  auto store = std::unique_ptr<Store>(new Store(std::move(*state), make_rule, &journal));
  store->is_started_ = true;
  journal.replay(store->state_, [&](std::uint32_t rank, const Gradient& gradient, std::span<const float> values) {
    store->update(rank, gradient, values);
  });
  return store;
}

std::span<float> Store::values(StoreArray array) {
  switch (array) {
    case StoreArray::kWeights:
      return state_.weights;
    case StoreArray::kExpAvg:
      return state_.exp_avg;
    case StoreArray::kExpAvgSq:
      return state_.exp_avg_sq;
  }
  return {};
}

std::vector<float> Store::weights_after(double pushes) const {
  std::vector<float> weights = state_.weights;
  rule_->look_ahead({.number = state_.applied,
                     .pushes = pushes,
                     .weights = weights,
                     .exp_avg = state_.exp_avg,
                     .exp_avg_sq = state_.exp_avg_sq});
  return weights;
}

void Store::start(std::uint64_t completed) {
  state_.applied = completed * state_.completed.size();
  std::fill(state_.completed.begin(), state_.completed.end(), completed);
  if (journal_ != nullptr) {
    journal_->keep(state_);
  }
  is_started_ = true;
}

void Store::update(std::uint32_t rank, const Gradient& gradient, std::span<const float> values) {
  rule_->apply({.number = state_.applied,
                .scale = gradient.scale,
                .gradient = values,
                .weights = state_.weights,
                .exp_avg = state_.exp_avg,
                .exp_avg_sq = state_.exp_avg_sq});
  state_.staleness.add(others_since(state_, gradient));
  ++state_.applied;
  state_.completed[rank] = gradient.step + 1;
}

std::optional<std::uint64_t> Store::apply(std::uint32_t rank, const Gradient& gradient, std::span<const float> values) {
  const std::uint64_t expected = state_.completed[rank];
  if (gradient.step < expected) {
    return {};
  }
  if (gradient.step > expected || gradient.version > state_.applied) {
    fail(ErrorCode::kCorrupt, "server: rank {}'s gradient of step {} from weights after {} updates, expected step {}",
         rank, gradient.step, gradient.version, expected);
  }
  const std::uint64_t stale = others_since(state_, gradient);
  if (journal_ != nullptr) {
    if (journal_->is_long()) {
      journal_->keep(state_);
    }
    journal_->append(state_, rank, gradient, values);
  }
  update(rank, gradient, values);
  return stale;
}

}  // namespace lockstep::server
