#include "trainer/replica.h"

#include <algorithm>

#include "trainer/model/parameters.h"

namespace lockstep {

Replica::Replica(const Architecture& architecture, Precision precision, Backend& backend, const Sharding& sharding)
    : model_(architecture),
      backend_(backend),
      working_dtype_(precision == Precision::kBf16 ? DType::kBF16 : DType::kF32),
      master_range_(is_narrow() ? shard(sharding.rank, sharding.world) : ElementRange{0, layout().total()}) {
  if (is_narrow()) {
    master_ = Buffer::allocate(master_range_.size() * sizeof(float));
    narrow_ = sharding.allocate(layout().total() * size_of(working_dtype_));
  } else {
    master_ = sharding.allocate(layout().total() * sizeof(float));
  }
  weights_ = tensors_over(layout(), working());
}

BufferView Replica::working() const {
  const Buffer& buffer = is_narrow() ? narrow_ : master_;
  return {buffer.data(), layout().total(), working_dtype_, backend_.device()};
}

void Replica::fill(const std::function<void(std::span<float> weights)>& write) {
  if (master_range_.size() == layout().total()) {
    write(master());
    refresh();
    return;
  }
  const Buffer buffer = Buffer::allocate(layout().total() * sizeof(float));
  const std::span<float> all = buffer.as<float>(layout().total());
  write(all);
  backend_.convert(view_of(all), working());
  std::ranges::copy(all.subspan(master_range_.begin, master_range_.size()), master().begin());
}

void Replica::initialize(std::uint64_t seed) {
  fill([&](std::span<float> weights) {
    lockstep::initialize(model_.architecture(), model_.parameters(), seed, backend_.pool(), weights);
  });
}

void Replica::refresh(const ElementRange& part) {
  if (is_narrow()) {
    backend_.convert(view_of(master_of(part)), working().slice(part));
  }
}

}  // namespace lockstep
