#include "trainer/grad_reducer.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "base/error.h"
#include "trainer/stopwatch.h"

namespace lockstep {

std::vector<Bucket> make_buckets(const ParameterLayout& layout, std::uint64_t bucket_bytes) {
  std::vector<Bucket> buckets;
  std::size_t first = 0;
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const std::uint64_t begin = layout.offset(first);
    const std::uint64_t end = p + 1 < layout.size() ? layout.offset(p + 1) : layout.total();
    if ((end - begin) * sizeof(float) >= bucket_bytes || p + 1 == layout.size()) {
      buckets.push_back({{begin, end}, first, p});
      first = p + 1;
    }
  }
  return buckets;
}

GradReducer::GradReducer(const ParameterLayout& layout, Communicator& communicator, Backend& backend,
                         const Options& options)
    : layout_(layout),
      communicator_(communicator),
      backend_(backend),
      options_(options),
      buckets_(make_buckets(layout, options.bucket_bytes)),
      bucket_of_(layout.size()) {
  require(options.local_micro_batches > 0, "reduce: {} micro-batches on a rank, expected at least 1",
          options.local_micro_batches);
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    for (std::size_t p = buckets_[b].first_parameter; p <= buckets_[b].last_parameter; ++p) {
      bucket_of_[p] = b;
    }
    bucket_pending_.push_back(buckets_[b].last_parameter - buckets_[b].first_parameter + 1);
    std::vector<ElementRange>& owned = bucket_owned_.emplace_back();
    for (const ElementRange& of_rank : options.owned) {
      const ElementRange part = intersection(buckets_[b].range, of_rank);
      owned.push_back({part.begin - buckets_[b].range.begin, part.end - buckets_[b].range.begin});
    }
  }
  // A binary counter that counts to n holds at most bit_width(n) - 1 finished sums and the one being made.
  const auto n = static_cast<std::uint64_t>(options.largest_micro_batches);
  for (int i = 0; i < static_cast<int>(std::bit_width(n)); ++i) {
    const std::size_t size_bytes = layout.total() * sizeof(float);
    buffers_.push_back(backend.device().kind == DeviceKind::kCpu ? communicator.allocate(size_bytes)
                                                                 : backend.allocate(size_bytes));
  }
  works_.reserve(buckets_.size());
}

std::span<float> GradReducer::flat(std::size_t buffer) const { return buffers_[buffer].as<float>(layout_.total()); }

Tensor GradReducer::gradient_of(int parameter) {
  const auto p = static_cast<std::size_t>(parameter);
  const std::vector<std::int64_t>& dims = layout_.specs()[p].shape;
  const Shape shape = dims.size() == 1 ? Shape{dims[0]} : Shape{dims[0], dims[1]};
  return {flat(top_).data() + layout_.offset(p), shape, DType::kF32, backend_.device()};
}

void GradReducer::gradient_ready(int parameter) {
  const std::size_t bucket = bucket_of_[static_cast<std::size_t>(parameter)];
  assert(bucket_pending_[bucket] > 0);
  if (--bucket_pending_[bucket] == 0 && in_last_micro_batch()) {
    if (communicator_.world_size() > 1) {
      backend_.between([this, bucket] { start_bucket(bucket); });
    } else {
      start_bucket(bucket);
    }
  }
}

void GradReducer::skip_micro_batch() {
  std::ranges::fill(bucket_pending_, 0);
  if (in_last_micro_batch()) {
    works_.resize(buckets_.size());  // a rank alone has nothing to wait for
  }
}

void GradReducer::merge(const ElementRange& range, std::size_t merges) {
  for (std::size_t i = 0; i < merges; ++i) {
    const std::span<float> upper = flat(top_ - i).subspan(range.begin, range.size());
    const std::span<float> lower = flat(top_ - i - 1).subspan(range.begin, range.size());
    backend_.add_f32(lower, upper, lower);
  }
}

void GradReducer::start_bucket(std::size_t bucket) {
  if (works_.empty()) {
    first_start_ms_ = now_ms();
  }
  const ElementRange& range = buckets_[bucket].range;
  merge(range, top_);
  const BufferView data = BufferView{flat(0).data(), layout_.total(), DType::kF32, backend_.device()}.slice(range);
  works_.push_back(options_.owned.empty() ? communicator_.all_reduce_sum(data)
                                          : communicator_.reduce_scatter_sum(data, bucket_owned_[bucket]));
}

void GradReducer::end_micro_batch() {
  if (in_last_micro_batch()) {
    return;
  }
  // Micro-batch i ends as many subtrees as i has trailing ones in binary.
  const auto merges = static_cast<std::size_t>(std::countr_one(static_cast<std::uint64_t>(micro_batch_)));
  merge({0, layout_.total()}, merges);
  top_ = top_ - merges + 1;
  ++micro_batch_;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    assert(bucket_pending_[b] == 0);
    bucket_pending_[b] = buckets_[b].last_parameter - buckets_[b].first_parameter + 1;
  }
}

void GradReducer::finish(const std::function<void(std::size_t bucket)>& waits_for) {
  assert(in_last_micro_batch() && works_.size() == buckets_.size());
  if (communicator_.world_size() > 1) {
    backend_.synchronize();  // what a GPU still computes is not communication
  }
  const double begin_ms = now_ms();
  for (std::size_t bucket = 0; bucket < works_.size(); ++bucket) {
    if (waits_for) {
      waits_for(bucket);
    }
    works_[bucket].wait();
  }
  const double end_ms = now_ms();
  works_.clear();
  exposed_ms_ = end_ms - begin_ms;
  comm_ms_ = end_ms - first_start_ms_;
  top_ = 0;
  micro_batch_ = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    bucket_pending_[b] = buckets_[b].last_parameter - buckets_[b].first_parameter + 1;
  }
}

}  // namespace lockstep
