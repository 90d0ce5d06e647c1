// Templates in the subset of Jinja2 that the chat templates of Hugging Face models use.
//
// Renders as transformers does: trim_blocks and lstrip_blocks are on, values are immutable, and there are
// raise_exception(), strftime_now(), namespace(), dict(), range(), a tojson that escapes no HTML, break and continue,
// and
// {% generation %} blocks. Not there: inheritance, includes, call blocks, recursive loops, * and ** in calls, % and
// format() on texts. What is not there is an error that names it, where it is reached.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "data/chat/jinja/value.h"

namespace lockstep {

using JinjaValue = jinja::Value;

// Cheap to copy, to be rendered by any number of threads with values of their own.
class JinjaTemplate {
 public:
  // `name` stands for the template in messages. Throws Error(kCorrupt): `name line 3: found "endif", expected ...`.
  [[nodiscard]] static JinjaTemplate parse(std::string_view source, std::string_view name);

  struct Rendering {
    // What strftime_now() formats, in local time.
    std::time_t now = 0;
  };

  // `context` is a dict. Throws Error(kUsage) with name and line where the template cannot go on: also where it calls
  // raise_exception, whose message is in it, and where it makes more than 64 MiB of text or takes too many steps.
  [[nodiscard]] std::string render(const JinjaValue& context, const Rendering& rendering) const;
  [[nodiscard]] std::string render(const JinjaValue& context) const {
    return render(context, {.now = std::time(nullptr)});
  }

  // The same with the marks of the characters (text.h): whoever said them, and {% generation %}.
  [[nodiscard]] jinja::Text render_marked(const JinjaValue& context, const Rendering& rendering) const;

  [[nodiscard]] const std::string& name() const { return name_; }
  // Whether there are {% generation %} blocks.
  [[nodiscard]] bool marks_generation() const { return marks_generation_; }

 private:
  struct Tree;
  std::string name_;
  std::shared_ptr<const Tree> tree_;
  bool marks_generation_ = false;
};

}  // namespace lockstep
