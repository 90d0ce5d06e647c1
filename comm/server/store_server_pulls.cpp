// How pulls are answered: when the roster allows it, with a copy of the weights.
#include <functional>
#include <utility>

#include "comm/server/store_server_impl.h"

namespace lockstep::server {

void StoreServer::Impl::answer_pulls() {
  if (over_ || !store_) {
    return;
  }
  for (Worker& worker : roster_.workers()) {
    if (worker.pull && !worker.is_sending && worker.is_here() && roster_.may_answer(worker)) {
      answer(worker);
    }
  }
}

void StoreServer::Impl::answer(Worker& worker) {
  const Pull pull = *worker.pull;
  const StoreState& state = store_->state();
  const bool ends = pull.when == Pull::When::kStep && roster_.wish() != Ending::kNone;
  worker.pull.reset();
  const std::uint32_t arrays = ends ? 0 : pull.arrays;
  worker.connection->send({.type = FrameType::kPulled}, encode(Pulled{.version = state.applied,
                                                                      .ending = roster_.wish(),
                                                                      .lead = roster_.lead().value_or(kNoRank),
                                                                      .arrays = arrays,
                                                                      .pushes = state.staleness.pushes,
                                                                      .stale_sum = state.staleness.sum,
                                                                      .stale_max = state.staleness.max,
                                                                      .missing = roster_.missing_steps()}));
  if (arrays == 0 || state.range.size() == 0) {
    return;
  }
  worker.is_sending = true;
  const bool is_ahead = pull.when == Pull::When::kStep && worker.usual_staleness > 0;
  const std::shared_ptr<const Image> copy = is_ahead ? image_ahead(worker.usual_staleness) : image(arrays);
  send_values(worker, copy, StoreArray::kWeights, copy->weights, arrays == 1);
  if (arrays == 3) {
    send_values(worker, copy, StoreArray::kExpAvg, copy->exp_avg, false);
    send_values(worker, copy, StoreArray::kExpAvgSq, copy->exp_avg_sq, true);
  }
}

void StoreServer::Impl::send_values(Worker& worker, const std::shared_ptr<const Image>& image, StoreArray array,
                                    const std::vector<float>& values, bool is_last) {
  const ElementRange range = store_->state().range;
  for (const FrameHeader& header : headers_of_values(array, store_->state().elements, range)) {
    const std::span<const float> piece =
        std::span(values).subspan(header.begin - range.begin, header.end - header.begin);
    std::function<void()> sent;
    if (is_last && header.end == range.end) {
      sent = [this, &worker, connection = worker.connection] {
        if (worker.connection == connection) {
          worker.is_sending = false;
          answer_pulls();
        }
      };
    }
    worker.connection->send(
        {.header = header, .payload = std::as_bytes(piece), .owner = image, .sent = std::move(sent)});
  }
}

// For a step, the weights as they will be when its gradient comes: delay and momentum together make updates swing.
std::shared_ptr<const StoreServer::Impl::Image> StoreServer::Impl::image_ahead(double pushes) const {
  const auto made = std::make_shared<Image>();
  made->version = store_->state().applied;
  made->weights = store_->weights_after(pushes);
  return made;
}

// Workers that pull the same version share one copy: there are never more copies than workers.
std::shared_ptr<const StoreServer::Impl::Image> StoreServer::Impl::image(std::uint32_t arrays) {
  const StoreState& state = store_->state();
  if (arrays == 1 && newest_ && newest_->version == state.applied) {
    return newest_;
  }
  const auto made = std::make_shared<Image>();
  made->version = state.applied;
  made->weights = state.weights;
  if (arrays == 3) {
    made->exp_avg = state.exp_avg;
    made->exp_avg_sq = state.exp_avg_sq;
    return made;
  }
  newest_ = made;
  return made;
}

}  // namespace lockstep::server
