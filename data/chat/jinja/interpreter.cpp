#include "data/chat/jinja/interpreter.h"

#include <algorithm>
#include <array>
#include <map>

#include "data/chat/jinja/filters.h"
#include "data/chat/jinja/globals.h"
#include "data/chat/jinja/operators.h"

namespace lockstep::jinja {
namespace {

constexpr std::size_t kMaxOutputBytes = std::size_t{64} << 20;
constexpr int kMaxDepth = 800;  // of statements, expressions and macros in one another: each takes stack

// The names that a block sees: its own, and those around it.
struct Scope {
  std::shared_ptr<Scope> around;
  std::vector<std::pair<std::string, Value>> names;

  [[nodiscard]] Value* own(std::string_view name) {
    const auto found = std::ranges::find(names, name, &std::pair<std::string, Value>::first);
    return found == names.end() ? nullptr : &found->second;
  }
  void set(const std::string& name, Value value) {
    if (Value* const place = own(name)) {
      *place = std::move(value);
    } else {
      names.emplace_back(name, std::move(value));
    }
  }
};

enum class Flow : std::uint8_t { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const Value& context, std::time_t now)
      : context_(context), globals_(make_globals({now, budget_, namespaces_})), scope_(std::make_shared<Scope>()) {}
  // A namespace may hold itself, and a macro the scope that holds it.
  ~Interpreter() {
    for (const auto& names : namespaces_) {
      names->entries.clear();
    }
    for (const auto& scope : kept_) {
      scope->names.clear();
    }
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Text run(const Block& block) {
    static_cast<void>(execute(block));
    return std::move(out_);
  }

 private:
  // Statements
  Flow execute(const Block& block);
  Flow execute(const Statement& statement);
  Flow execute_if(const Statement& statement);
  Flow execute_for(const Statement& statement);
  [[nodiscard]] Values items_of(const Statement& loop);
  void define_macro(const Statement& statement);
  Value call_macro(const Statement& macro, const std::shared_ptr<Scope>& around, const Arguments& arguments);
  void assign(const Target& target, const Value& value);
  void write(const Text& text);
  // What `block` writes, run in a scope of its own.
  Text captured(const Block& block);

  // Expressions
  Value evaluate(const Expression& e);
  Value value_of(const Expression& e);
  Value look_up(const std::string& name);
  Value make_dict(const Expression& e);
  bool evaluate_compare(const Expression& e);
  Value evaluate_filter(const Expression& e, const Value* block_text);
  Values evaluate_all(const std::vector<ExpressionPtr>& operands, std::size_t from);
  Arguments arguments_of(const Expression& e, std::size_t from);

  // Runs in a scope inside of `around`.
  class ScopeGuard {
   public:
    ScopeGuard(Interpreter& interpreter, std::shared_ptr<Scope> around)
        : interpreter_(interpreter), saved_(interpreter.scope_) {
      interpreter_.scope_ = std::make_shared<Scope>(Scope{std::move(around), {}});
    }
    ~ScopeGuard() { interpreter_.scope_ = std::move(saved_); }
    ScopeGuard(const ScopeGuard&) = delete;
    ScopeGuard& operator=(const ScopeGuard&) = delete;

   private:
    Interpreter& interpreter_;
    std::shared_ptr<Scope> saved_;
  };
  struct DepthGuard {
    explicit DepthGuard(int& depth) : depth_(depth) {
      expect(depth < kMaxDepth, "statements, expressions and macros are nested more than {} deep", kMaxDepth);
      ++depth_;
    }
    ~DepthGuard() { --depth_; }
    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;
    int& depth_;
  };

  Budget budget_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Scope>> kept_;  // scopes that macros were defined in
  const Value& context_;
  std::map<std::string, Value, std::less<>> globals_;
  std::shared_ptr<Scope> scope_;
  Text out_;
  int depth_ = 0;
  int loops_ = 0;
};

Flow Interpreter::execute(const Block& block) {
  const DepthGuard guard(depth_);
  for (const auto& statement : block) {
    budget_.charge(1);
    try {
      if (const Flow flow = execute(*statement); flow != Flow::kNext) {
        return flow;
      }
    } catch (Failure& failure) {
      failure.line = failure.line == 0 ? statement->line : failure.line;
      throw;
    }
  }
  return Flow::kNext;
}

Flow Interpreter::execute(const Statement& statement) {
  using enum Statement::Kind;
  switch (statement.kind) {
    case kText:
      write(statement.text);
      break;
    case kPrint:
      write(to_str(evaluate(*statement.expression), budget_));
      break;
    case kIf:
      return execute_if(statement);
    case kFor:
      return execute_for(statement);
    case kBreak:
      return Flow::kBreak;
    case kContinue:
      return Flow::kContinue;
    case kSet:
      assign(statement.target, evaluate(*statement.expression));
      break;
    case kSetBlock:
    case kFilter: {
      Value text = captured(statement.body);
      if (statement.expression != nullptr) {
        text = evaluate_filter(*statement.expression, &text);
      }
      if (statement.kind == kFilter) {
        write(to_str(text, budget_));
      } else {
        assign(statement.target, text);
      }
      break;
    }
    case kMacro:
      define_macro(statement);
      break;
    case kGeneration: {
      Text text = captured(statement.body);
      for (char32_t& c : text) {
        c |= kGenerationMark;
      }
      write(text);
      break;
    }
  }
  return Flow::kNext;
}

Flow Interpreter::execute_if(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (evaluate(*condition).truth()) {
      return execute(body);
    }
  }
  return execute(statement.otherwise);
}

// What a loop goes through; the condition sees the target alone.
Values Interpreter::items_of(const Statement& loop) {
  Values items = elements(evaluate(*loop.expression), budget_);
  if (loop.condition == nullptr) {
    return items;
  }
  Values wanted;
  for (Value& item : items) {
    const ScopeGuard guard(*this, scope_);
    assign(loop.target, item);
    if (evaluate(*loop.condition).truth()) {
      wanted.push_back(std::move(item));
    }
  }
  return wanted;
}

Flow Interpreter::execute_for(const Statement& statement) {
  const auto items = std::make_shared<const Values>(items_of(statement));
  if (items->empty()) {
    const ScopeGuard guard(*this, scope_);
    return execute(statement.otherwise);
  }
  ++loops_;
  for (std::size_t i = 0; i < items->size(); ++i) {
    const ScopeGuard guard(*this, scope_);
    scope_->set("loop", std::make_shared<const Loop>(Loop{items, i, loops_}));
    assign(statement.target, (*items)[i]);
    if (execute(statement.body) == Flow::kBreak) {
      break;
    }
  }
  --loops_;
  return Flow::kNext;
}

void Interpreter::define_macro(const Statement& statement) {
  kept_.push_back(scope_);
  scope_->set(statement.name,
              std::make_shared<const Callable>(Callable{
                  statement.name,
                  [this, &statement, around = std::weak_ptr<Scope>(scope_)](const Arguments& arguments) -> Value {
                    return call_macro(statement, around.lock(), arguments);
                  }}));
}

Value Interpreter::call_macro(const Statement& macro, const std::shared_ptr<Scope>& around,
                              const Arguments& arguments) {
  const DepthGuard depth(depth_);
  const ScopeGuard guard(*this, around);
  const auto& parameters = macro.parameters;
  expect(arguments.positional.size() <= parameters.size(), "the macro {} is given {} arguments, expected at most {}",
         macro.name, arguments.positional.size(), parameters.size());
  std::vector<bool> is_given(parameters.size());
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) {
    scope_->set(parameters[i].name, arguments.positional[i]);
    is_given[i] = true;
  }
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(parameters, name, &Parameter::name);
    expect(found != parameters.end(), "the macro {} has no parameter {}", macro.name, name);
    const auto place = static_cast<std::size_t>(found - parameters.begin());
    expect(!is_given[place], "the macro {} is given {} twice", macro.name, name);
    scope_->set(name, value);
    is_given[place] = true;
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!is_given[i]) {
      scope_->set(parameters[i].name,
                  parameters[i].otherwise != nullptr
                      ? evaluate(*parameters[i].otherwise)
                      : Value::undefined(fmt::format("the parameter {} was not given", parameters[i].name)));
    }
  }
  return captured(macro.body);
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.parts.empty()) {
    const Values items = elements(value, budget_);
    expect(items.size() == target.parts.size(), "{} values are assigned to {} names", items.size(),
           target.parts.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      assign(target.parts[i], items[i]);
    }
    return;
  }
  if (target.attribute.empty()) {
    scope_->set(target.name, value);
    return;
  }
  const Value holder = look_up(target.name);
  Namespace* const names = holder.name_space();
  expect(names != nullptr, "{}.{} is set, but {} is no namespace", target.name, target.attribute, target.name);
  set_in_namespace(*names, target.attribute, value);
}

void Interpreter::write(const Text& text) {
  budget_.charge(text.size());
  expect(out_.size() + text.size() <= kMaxOutputBytes / 4, "the template writes more than {} bytes", kMaxOutputBytes);
  out_ += text;
}

Text Interpreter::captured(const Block& block) {
  const ScopeGuard guard(*this, scope_);
  Text around = std::exchange(out_, Text());
  static_cast<void>(execute(block));
  return std::exchange(out_, std::move(around));
}

Value Interpreter::evaluate(const Expression& e) {
  const DepthGuard guard(depth_);
  budget_.charge(1);
  try {
    return value_of(e);
  } catch (Failure& failure) {
    failure.line = failure.line == 0 ? e.line : failure.line;
    throw;
  }
}

Value Interpreter::value_of(const Expression& e) {
  using enum Expression::Kind;
  const auto operand = [&](std::size_t i) { return evaluate(*e.operands[i]); };
  const auto optional = [&](std::size_t i) { return e.operands[i] == nullptr ? Value() : operand(i); };
  switch (e.kind) {
    case kConstant:
      return e.value;
    case kName:
      return look_up(e.name);
    case kList:
      return Value::list(evaluate_all(e.operands, 0));
    case kTuple:
      return Value::sequence(SequenceKind::kTuple, evaluate_all(e.operands, 0));
    case kDict:
      return make_dict(e);
    case kUnary:
      return e.name == "not" ? Value(!operand(0).truth()) : signed_value(e.name, operand(0));
    case kBinary: {
      const Value left = operand(0);
      return binary(e.name, left, operand(1), budget_);
    }
    case kAnd:
    case kOr: {
      Value left = operand(0);
      return left.truth() == (e.kind == kOr) ? left : operand(1);
    }
    case kConcat: {
      Text joined;
      for (const ExpressionPtr& part : e.operands) {
        const Text text = to_str(evaluate(*part), budget_);
        budget_.charge(text.size());
        joined += text;
      }
      return joined;
    }
    case kCompare:
      return evaluate_compare(e);
    case kIf:
      if (operand(0).truth()) {
        return operand(1);
      }
      return e.operands[2] != nullptr ? operand(2)
                                      : Value::undefined("the condition of an if without else does not hold");
    case kAttribute:
      return attribute_of(operand(0), e.name, budget_);
    case kItem: {
      const Value of = operand(0);
      return item_of(of, operand(1), budget_);
    }
    case kSlice: {
      const Value of = operand(0);
      return slice_of(of, {optional(1), optional(2), optional(3)}, budget_);
    }
    case kCall: {
      const Value function = operand(0);
      return call(function, arguments_of(e, 1));
    }
    case kFilter:
      return evaluate_filter(e, nullptr);
    case kTest:
      return apply_test(e.name, arguments_of(e, 0), budget_);
  }
  return {};
}

Value Interpreter::look_up(const std::string& name) {
  for (Scope* scope = scope_.get(); scope != nullptr; scope = scope->around.get()) {
    if (const Value* const found = scope->own(name)) {
      return *found;
    }
  }
  if (const Value* const found = context_.dict()->find(std::string_view(name))) {
    return *found;
  }
  const auto found = globals_.find(name);
  return found != globals_.end() ? found->second : Value::undefined(fmt::format("{} is undefined", name));
}

Value Interpreter::make_dict(const Expression& e) {
  Entries entries;
  for (std::size_t i = 0; i < e.operands.size(); i += 2) {
    const Value key = evaluate(*e.operands[i]);
    put_entry(entries, key, evaluate(*e.operands[i + 1]), budget_);
  }
  return Value::dict(std::move(entries));
}

// a < b < c: pair by pair, as far as they hold.
bool Interpreter::evaluate_compare(const Expression& e) {
  Value left = evaluate(*e.operands[0]);
  for (std::size_t i = 0; i < e.names.size(); ++i) {
    Value right = evaluate(*e.operands[i + 1]);
    if (!compare(e.names[i], left, right, budget_)) {
      return false;
    }
    left = std::move(right);
  }
  return true;
}

// `block_text` is what the innermost of the filters of a block is given.
Value Interpreter::evaluate_filter(const Expression& e, const Value* block_text) {
  if (block_text == nullptr) {
    return apply_filter(e.name, arguments_of(e, 0), budget_);
  }
  Arguments arguments = arguments_of(e, 1);
  const ExpressionPtr& inner = e.operands.front();
  arguments.positional.insert(arguments.positional.begin(),
                              inner == nullptr ? *block_text : evaluate_filter(*inner, block_text));
  return apply_filter(e.name, arguments, budget_);
}

Values Interpreter::evaluate_all(const std::vector<ExpressionPtr>& operands, std::size_t from) {
  Values values;
  for (std::size_t i = from; i < operands.size(); ++i) {
    values.push_back(evaluate(*operands[i]));
  }
  return values;
}

Arguments Interpreter::arguments_of(const Expression& e, std::size_t from) {
  Arguments arguments{evaluate_all(e.operands, from), {}};
  for (const auto& [name, value] : e.named) {
    arguments.named.emplace_back(name, evaluate(*value));
  }
  return arguments;
}

}  // namespace

Text run(const Block& block, const Value& context, std::time_t now) {
  expect(context.dict() != nullptr, "the context is a {}, expected a dict", context.type());
  return Interpreter(context, now).run(block);
}

}  // namespace lockstep::jinja
