#include "trainer/base_model.h"

#include <algorithm>
#include <cassert>
#include <vector>

#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/reader.h"

namespace lockstep {

Hash128 load_base(const std::filesystem::path& folder, Replica& replica, std::span<float> trained) {
  assert(trained.empty() || trained.size() == replica.layout().total());
  const ParameterLayout base = make_parameters(replica.model().architecture()).layout;
  const ParameterReader read = open_weights(folder, base);
  StateDigest digest(base);
  std::vector<float> values;
  for (std::size_t i = 0; i < base.size(); ++i) {
    const ParameterSpec& spec = base.specs()[i];
    values.resize(base.count(i));
    read(spec, values);
    digest.add_parameter(StateKind::kMaster, i, 0, values);
    if (const auto frozen = replica.frozen().find(spec.name)) {
      replica.fill_frozen(*frozen, values);
    } else if (!trained.empty()) {
      const auto place = replica.layout().find(spec.name);
      std::copy(values.begin(), values.end(),
                trained.begin() + static_cast<std::ptrdiff_t>(replica.layout().offset(*place)));
    }
  }
  return StateDigest::finish(base, digest.sum());
}

}  // namespace lockstep
