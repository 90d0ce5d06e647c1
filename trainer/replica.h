// One rank's copy of the model: architecture, master weights, and the weights that kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/model/transformer.h"

namespace lockstep {

class Replica {
 public:
  // Where the optimizer's state is sharded, a rank keeps the master weights of its own shard only, and its working
  // weights in memory that other ranks can read.
  struct Sharding {
    int rank = 0;
    int world = 1;
    std::function<Buffer(std::size_t size_bytes)> allocate = {};  // empty: the backend's
  };

  // Weights are zero until fill() or initialize(). `backend` outlives it.
  Replica(const Architecture& architecture, Precision precision, Backend& backend, const TuneConfig& tune = {})
      : Replica(architecture, precision, backend, tune, Sharding{}) {}
  Replica(const Architecture& architecture, Precision precision, Backend& backend, const TuneConfig& tune,
          const Sharding& sharding);

  [[nodiscard]] const Transformer& model() const { return model_; }
  // Of the trained parameters. All that follows but frozen() is about them.
  [[nodiscard]] const ParameterLayout& layout() const { return model_.parameters().layout; }
  [[nodiscard]] const ParameterLayout& frozen() const { return model_.parameters().frozen; }
  [[nodiscard]] DType working_dtype() const { return working_dtype_; }
  [[nodiscard]] Backend& backend() const { return backend_; }

  // Rank `rank`'s shard of the flat layout: whole blocks of kSquaresBlock, so that the gradient's norm is a sum of the
  // same blocks on any number of ranks.
  [[nodiscard]] ElementRange shard(int rank, int world) const { return layout().shard(rank, world, kSquaresBlock); }

  // The elements of the flat layout that master() holds: in fp32 all of them. Like all weights it lies on the backend's
  // device.
  [[nodiscard]] const ElementRange& master_range() const { return master_range_; }
  [[nodiscard]] std::span<float> master() const { return master_.as<float>(master_range_.size()); }
  [[nodiscard]] std::span<float> master_of(const ElementRange& part) const {
    return master().subspan(part.begin - master_range_.begin, part.size());
  }
  // The flat weights in the working dtype: master() itself in fp32.
  [[nodiscard]] BufferView working() const;

  // `write` is given room for all weights in f32, on the host, and writes them.
  void fill(const std::function<void(std::span<float> weights)>& write);
  // Random weights, a function of the seed.
  void initialize(std::uint64_t seed);
  // The values of parameter `index` of frozen(), kept in the working dtype; matrices of blocks as tune.quantize says.
  void fill_frozen(std::size_t index, std::span<float> values);
  // After a change of master_of(part): brings the narrow copy up to date.
  void refresh(const ElementRange& part);
  void refresh() { refresh(master_range_); }

  // A tensor for each parameter, by number: see tensors_over().
  [[nodiscard]] std::span<const Tensor> weights() const { return weights_; }

 private:
  [[nodiscard]] BufferView master_view() const {
    return {master_.data(), master_range_.size(), DType::kF32, backend_.device()};
  }
  void make_frozen(Packing packing);
  // Copies values that are computed on the host to the backend's device.
  void upload(std::span<const std::byte> bytes, void* to) const;
  [[nodiscard]] bool is_narrow() const { return working_dtype_ != DType::kF32; }

  void fill_working(const BufferView& all);

  Transformer model_;
  Backend& backend_;
  DType working_dtype_;
  ElementRange master_range_;
  Buffer master_;
  Buffer narrow_;               // bf16 or f16
  std::vector<Buffer> frozen_;  // by parameter of frozen()
  std::vector<Tensor> frozen_tensors_;
  std::vector<Tensor> weights_;
};

}  // namespace lockstep
