#include "data/pack/text_cuts.h"

#include <algorithm>
#include <cassert>

namespace lockstep {
namespace {

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }
bool is_letter(char byte) { return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z'); }

std::size_t window_begin(std::size_t low, std::size_t wanted, std::size_t window) {
  return std::max(low, wanted > window ? wanted - window : 0);
}

}  // namespace

std::size_t line_cut(std::string_view text, std::size_t low, std::size_t wanted) {
  assert(low < wanted && wanted < text.size());
  const std::size_t begin = window_begin(low, wanted, kLineWindow);
  for (std::size_t cut = wanted; cut > begin; --cut) {
    if (text[cut - 1] == '\n') {
      return cut;
    }
  }
  constexpr std::size_t kContinuationBytes = 3;  // at most, in UTF-8
  for (std::size_t cut = wanted; cut > window_begin(low, wanted, kContinuationBytes + 1); --cut) {
    if (!is_continuation(text[cut])) {
      return cut;
    }
  }
  return wanted;  // not UTF-8
}

std::size_t word_cut(std::string_view text, std::size_t low, std::size_t wanted) {
  assert(low < wanted && wanted < text.size());
  for (std::size_t cut = wanted; cut > window_begin(low, wanted, kWordWindow); --cut) {
    if (is_letter(text[cut - 1]) && (text[cut] == ' ' || text[cut] == '\n')) {
      return cut;
    }
  }
  return line_cut(text, low, wanted);
}

}  // namespace lockstep
