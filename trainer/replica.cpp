#include "trainer/replica.h"

#include <algorithm>

#include "trainer/model/parameters.h"

namespace lockstep {

Replica::Replica(const Architecture& architecture, Precision precision, Backend& backend, const TuneConfig& tune,
                 const Sharding& sharding)
    : model_(architecture, tune),
      backend_(backend),
      working_dtype_(precision == Precision::kBf16 ? DType::kBF16 : DType::kF32),
      master_range_(is_narrow() ? shard(sharding.rank, sharding.world) : ElementRange{0, layout().total()}) {
  const auto allocate = [&](std::size_t size_bytes) {
    return sharding.allocate ? sharding.allocate(size_bytes) : backend.allocate(size_bytes);
  };
  if (is_narrow()) {
    master_ = backend.allocate(master_range_.size() * sizeof(float));
    narrow_ = allocate(layout().total() * size_of(working_dtype_));
  } else {
    master_ = allocate(layout().total() * sizeof(float));
  }
  frozen_ = backend.allocate(frozen().total() * size_of(working_dtype_));
  weights_ = tensors_over(model_.parameters(), working(), frozen_view());
}

BufferView Replica::working() const {
  const Buffer& buffer = is_narrow() ? narrow_ : master_;
  return {buffer.data(), layout().total(), working_dtype_, backend_.device()};
}

void Replica::fill(const std::function<void(std::span<float> weights)>& write) {
  const bool on_host = backend_.device().kind == DeviceKind::kCpu;
  const bool has_all = master_range_.size() == layout().total();
  if (on_host && has_all) {
    write(master());
    refresh();
    return;
  }
  const Buffer buffer = Buffer::allocate(layout().total() * sizeof(float));
  const BufferView all = view_of(buffer.as<float>(layout().total()));
  write(all.as<float>());
  backend_.copy(all.slice(master_range_), master_view());
  if (has_all) {
    refresh();
  } else {
    fill_working(all);
  }
}

// Where this rank has the master weights of its shard only. On a GPU `all` travels in pieces.
void Replica::fill_working(const BufferView& all) {
  if (backend_.device().kind == DeviceKind::kCpu) {
    backend_.convert(all, working());
    return;
  }
  constexpr std::uint64_t kPiece = std::uint64_t{16} << 20;
  const std::uint64_t most = std::min(kPiece, all.count);
  const Buffer buffer = backend_.allocate(most * sizeof(float));
  for (std::uint64_t begin = 0; begin < all.count; begin += most) {
    const ElementRange part{begin, std::min(begin + most, all.count)};
    const BufferView piece{buffer.data(), part.size(), DType::kF32, backend_.device()};
    backend_.copy(all.slice(part), piece);
    backend_.convert(piece, working().slice(part));
  }
  backend_.synchronize();
}

void Replica::fill_frozen(std::size_t index, std::span<float> values) {
  const BufferView place = frozen_view().slice(frozen().offset(index), frozen().count(index));
  if (!is_narrow()) {
    backend_.copy(view_of(values), place);
    return;
  }
  if (backend_.device().kind == DeviceKind::kCpu) {
    backend_.convert(view_of(values), place);
    return;
  }
  const Buffer buffer = backend_.allocate(values.size_bytes());
  const BufferView uploaded{buffer.data(), values.size(), DType::kF32, backend_.device()};
  backend_.copy(view_of(values), uploaded);
  backend_.convert(uploaded, place);
  backend_.synchronize();
}

void Replica::initialize(std::uint64_t seed) {
  fill([&](std::span<float> weights) {
    lockstep::initialize(model_.architecture(), model_.parameters(), seed, backend_.pool(), weights);
  });
}

void Replica::refresh(const ElementRange& part) {
  if (is_narrow()) {
    backend_.convert(master_view().slice({part.begin - master_range_.begin, part.end - master_range_.begin}),
                     working().slice(part));
  }
}

}  // namespace lockstep
