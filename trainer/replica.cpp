#include "trainer/replica.h"

#include <algorithm>

#include "trainer/model/parameters.h"

namespace lockstep {

Replica::Replica(const Architecture& architecture, Precision precision, Backend& backend, const TuneConfig& tune,
                 const Sharding& sharding)
    : model_(architecture, tune),
      backend_(backend),
      working_dtype_(dtype_of(precision)),
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
  make_frozen(tune.quantize);
  weights_ = tensors_over(model_.parameters(), working(), frozen_tensors_);
}

void Replica::make_frozen(Packing packing) {
  const ModelParameters& parameters = model_.parameters();
  const std::vector<bool> are_matrices = are_block_matrices(parameters);
  frozen_.resize(frozen().size());
  frozen_tensors_.resize(frozen().size());
  for (std::size_t number = 0; number < parameters.places.size(); ++number) {
    const auto [trained, index] = parameters.places[number];
    if (trained) {
      continue;
    }
    const Shape shape = shape_of(frozen().specs()[index]);
    const bool is_packed = packing != Packing::kNone && are_matrices[number];
    const std::size_t count = frozen().count(index);
    frozen_[index] = backend_.allocate(is_packed ? packed_bytes(packing, count) : count * size_of(working_dtype_));
    void* const data = frozen_[index].data();
    frozen_tensors_[index] = is_packed ? Tensor(PackedWeight{packing, static_cast<const std::byte*>(data)}, shape,
                                                working_dtype_, backend_.device())
                                       : Tensor(data, shape, working_dtype_, backend_.device());
  }
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

void Replica::upload(std::span<const std::byte> bytes, void* to) const {
  const auto* const from = reinterpret_cast<const std::uint8_t*>(bytes.data());
  backend_.copy({const_cast<std::uint8_t*>(from), bytes.size(), DType::kU8, Device{}},
                {to, bytes.size(), DType::kU8, backend_.device()});
  backend_.synchronize();
}

void Replica::fill_frozen(std::size_t index, std::span<float> values) {
  const Tensor& tensor = frozen_tensors_[index];
  if (tensor.packed.packing != Packing::kNone) {
    std::vector<std::byte> bytes(packed_bytes(tensor.packed.packing, values.size()));
    pack(tensor.packed.packing, values, bytes);
    upload(bytes, frozen_[index].data());
    return;
  }
  if (!is_narrow()) {
    backend_.copy(view_of(values), tensor.buffer());
    return;
  }
  if (backend_.device().kind == DeviceKind::kCpu) {
    backend_.convert(view_of(values), tensor.buffer());
    return;
  }
  const Buffer buffer = backend_.allocate(values.size_bytes());
  const BufferView uploaded{buffer.data(), values.size(), DType::kF32, backend_.device()};
  backend_.copy(view_of(values), uploaded);
  backend_.convert(uploaded, tensor.buffer());
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
