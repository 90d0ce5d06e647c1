// Places where a text may be cut without changing how its halves are tokenized.
#pragma once

#include <cstddef>
#include <string_view>

namespace lockstep {

// How far back the functions below look for a good place.
inline constexpr std::size_t kLineWindow = 65'536;
inline constexpr std::size_t kWordWindow = 4'096;

// The last place in (low, wanted] that is the beginning of a line; where a line is longer than kLineWindow, the last
// one between two characters. Needs low < wanted < text.size().
[[nodiscard]] std::size_t line_cut(std::string_view text, std::size_t low, std::size_t wanted);

// The last place in (low, wanted] between a letter of ASCII and white space, where every pattern in use begins a new
// word; without one in kWordWindow as line_cut. Needs low < wanted < text.size().
[[nodiscard]] std::size_t word_cut(std::string_view text, std::size_t low, std::size_t wanted);

}  // namespace lockstep
