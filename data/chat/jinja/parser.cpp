#include "data/chat/jinja/parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>

#include "data/chat/jinja/lexer.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr int kMaxExpressionDepth = 200;
constexpr int kMaxNesting = 300;  // of calls that parse an expression: three for one in brackets
constexpr int kMaxBlocks = 60;

using Kind = Expression::Kind;

std::string shown(const Token& token) {
  return token.kind == Token::Kind::kEnd    ? "the end of the template"
         : token.kind == Token::Kind::kText ? "text"
                                            : in_quotes(token.text);
}

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run() {
    try {
      Block block = parse_block({});
      expect(at().kind == Token::Kind::kEnd, "{} has nothing to end", shown(at()));
      return block;
    } catch (Failure& failure) {
      failure.line = failure.line == 0 ? at().line : failure.line;
      throw;
    }
  }

 private:
  // Tokens
  [[nodiscard]] const Token& at(std::size_t ahead = 0) const {
    return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
  }
  const Token& next() {
    const Token& token = at();
    position_ += 1;
    return token;
  }
  [[nodiscard]] bool sees(std::string_view op) const { return at().is(Token::Kind::kOperator, op); }
  [[nodiscard]] bool sees_name(std::string_view name) const { return at().is(Token::Kind::kName, name); }
  [[nodiscard]] bool sees(Token::Kind kind) const { return at().kind == kind; }
  bool skip(std::string_view op) {
    const bool found = sees(op);
    position_ += found ? 1 : 0;
    return found;
  }
  bool skip_name(std::string_view name) {
    const bool found = sees_name(name);
    position_ += found ? 1 : 0;
    return found;
  }
  void take(std::string_view op) { expect(skip(op), "found {}, expected {}", shown(at()), op); }
  void take_name(std::string_view name) { expect(skip_name(name), "found {}, expected {}", shown(at()), name); }
  std::string take_any_name(std::string_view what) {
    expect(sees(Token::Kind::kName), "found {}, expected {}", shown(at()), what);
    return next().text;
  }
  void take_block_end() {
    expect(sees(Token::Kind::kBlockEnd), "found {}, expected %}}", shown(at()));
    next();
  }

  // Statements
  using Ends = std::initializer_list<std::string_view>;
  Block parse_block(Ends ends);
  std::unique_ptr<Statement> parse_tag();
  void parse_if(Statement& statement);
  void parse_for(Statement& statement);
  void parse_set(Statement& statement);
  void parse_macro(Statement& statement);
  Block parse_body(Ends ends);
  Target parse_target(bool may_be_tuple);
  Target parse_one_target();

  // Expressions, by how strongly they bind.
  ExpressionPtr parse_expression(bool with_if = true);
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters = true);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_name();
  ExpressionPtr parse_number();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_tuple(bool with_if, bool in_brackets);
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_filters(ExpressionPtr node, bool first_is_named = false);
  ExpressionPtr parse_filter(ExpressionPtr node);
  ExpressionPtr parse_test(ExpressionPtr node);
  void parse_arguments(Expression& call);
  std::string parse_dotted_name(std::string_view what);

  [[nodiscard]] ExpressionPtr node(Kind kind, std::string name = {}) const {
    auto made = std::make_unique<Expression>();
    made->kind = kind;
    made->line = at().line;
    made->name = std::move(name);
    return made;
  }
  template <typename... Operands>
  [[nodiscard]] ExpressionPtr node_of(Kind kind, std::string name, Operands... operands) {
    ExpressionPtr made = node(kind, std::move(name));
    (adopt(*made, std::move(operands)), ...);
    return made;
  }
  // The tree's depth is bounded, as everything that walks it recurses.
  static void adopt(Expression& parent, ExpressionPtr child) {
    if (child != nullptr) {
      parent.depth = std::max(parent.depth, child->depth + 1);
      expect(parent.depth <= kMaxExpressionDepth, "the expression is nested more than {} deep", kMaxExpressionDepth);
    }
    parent.operands.push_back(std::move(child));
  }

  struct Nested {
    explicit Nested(int& count, int most) : count_(count) {
      expect(count < most, "nested more than {} deep", most);
      ++count_;
    }
    ~Nested() { --count_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    int& count_;
  };

  std::vector<Token> tokens_;
  std::size_t position_ = 0;
  int nesting_ = 0;
  int blocks_ = 0;
  int loops_ = 0;
};

Block Parser::parse_block(Ends ends) {
  const Nested nested(blocks_, kMaxBlocks);
  Block block;
  while (!sees(Token::Kind::kEnd)) {
    auto statement = std::make_unique<Statement>();
    statement->line = at().line;
    if (sees(Token::Kind::kText)) {
      statement->text = to_text(next().text);
    } else if (sees(Token::Kind::kPrintBegin)) {
      next();
      statement->kind = Statement::Kind::kPrint;
      statement->expression = parse_tuple(true, false);
      expect(sees(Token::Kind::kPrintEnd), "found {}, expected }}}}", shown(at()));
      next();
    } else {
      const bool is_end = at(1).kind == Token::Kind::kName && std::ranges::find(ends, at(1).text) != ends.end();
      if (is_end) {
        return block;
      }
      next();
      statement = parse_tag();
    }
    block.push_back(std::move(statement));
  }
  expect(ends.size() == 0, "the template ends inside a block, expected {{% {} %}}",
         ends.size() == 0 ? "" : *(ends.end() - 1));
  return block;
}

// A block's content, up to one of the tags `ends`, whose "{%" and name are taken; at() is what follows.
Block Parser::parse_body(Ends ends) {
  take_block_end();
  Block block = parse_block(ends);
  next();
  next();
  return block;
}

std::unique_ptr<Statement> Parser::parse_tag() {
  auto statement = std::make_unique<Statement>();
  statement->line = at().line;
  const std::string tag = take_any_name("the name of a tag");
  using enum Statement::Kind;
  if (tag == "if") {
    parse_if(*statement);
  } else if (tag == "for") {
    parse_for(*statement);
  } else if (tag == "set") {
    parse_set(*statement);
  } else if (tag == "macro") {
    parse_macro(*statement);
  } else if (tag == "break" || tag == "continue") {
    expect(loops_ > 0, "{} stands outside of a loop", tag);
    statement->kind = tag == "break" ? kBreak : kContinue;
  } else if (tag == "filter") {
    statement->kind = kFilter;
    statement->expression = parse_filters(nullptr, true);
    statement->body = parse_body({"endfilter"});
  } else if (tag == "generation") {
    statement->kind = kGeneration;
    statement->body = parse_body({"endgeneration"});
  } else {
    refuse("the tag {} is not supported here", in_quotes(tag));
  }
  take_block_end();
  return statement;
}

void Parser::parse_if(Statement& statement) {
  statement.kind = Statement::Kind::kIf;
  while (true) {
    ExpressionPtr condition = parse_tuple(false, false);
    Block body = parse_body({"elif", "else", "endif"});
    statement.branches.emplace_back(std::move(condition), std::move(body));
    const std::string& end = tokens_[position_ - 1].text;
    if (end == "else") {
      statement.otherwise = parse_body({"endif"});
    }
    if (end != "elif") {
      return;
    }
  }
}

void Parser::parse_for(Statement& statement) {
  statement.kind = Statement::Kind::kFor;
  statement.target = parse_target(true);
  take_name("in");
  statement.expression = parse_tuple(false, false);
  if (skip_name("if")) {
    statement.condition = parse_expression();
  }
  expect(!sees_name("recursive"), "recursive loops are not supported");
  ++loops_;
  statement.body = parse_body({"else", "endfor"});
  --loops_;
  if (tokens_[position_ - 1].text == "else") {
    statement.otherwise = parse_body({"endfor"});
  }
}

void Parser::parse_set(Statement& statement) {
  statement.target = parse_target(true);
  if (skip("=")) {
    statement.kind = Statement::Kind::kSet;
    statement.expression = parse_tuple(true, false);
    return;
  }
  statement.kind = Statement::Kind::kSetBlock;
  expect(statement.target.parts.empty(), "a block is set to a tuple, expected one name");
  if (sees("|")) {
    statement.expression = parse_filters(nullptr);
  }
  statement.body = parse_body({"endset"});
}

void Parser::parse_macro(Statement& statement) {
  statement.kind = Statement::Kind::kMacro;
  statement.name = take_any_name("the macro's name");
  take("(");
  while (!skip(")")) {
    if (!statement.parameters.empty()) {
      take(",");
    }
    Parameter parameter{take_any_name("a parameter's name"), nullptr};
    if (skip("=")) {
      parameter.otherwise = parse_expression();
    }
    expect(parameter.otherwise != nullptr || statement.parameters.empty() ||
               statement.parameters.back().otherwise == nullptr,
           "the parameter {} follows one with a default and has none", parameter.name);
    statement.parameters.push_back(std::move(parameter));
  }
  const int loops = std::exchange(loops_, 0);
  statement.body = parse_body({"endmacro"});
  loops_ = loops;
}

Target Parser::parse_one_target() {
  const Nested nested(nesting_, kMaxNesting);
  if (skip("(")) {
    Target target = parse_target(true);
    take(")");
    return target;
  }
  Target target{take_any_name("a name to assign to"), {}, {}};
  constexpr std::array<std::string_view, 9> kReserved = {"true", "false", "none", "True", "False",
                                                         "None", "not",   "in",   "if"};
  expect(std::ranges::find(kReserved, target.name) == kReserved.end(), "{} cannot be assigned to", target.name);
  if (skip(".")) {
    target.attribute = take_any_name("an attribute's name");
  }
  expect(!sees("["), "found {}, expected a name or an attribute of a namespace to assign to", shown(at()));
  return target;
}

Target Parser::parse_target(bool may_be_tuple) {
  Target first = parse_one_target();
  if (!may_be_tuple || !sees(",")) {
    return first;
  }
  Target tuple;
  tuple.parts.push_back(std::move(first));
  while (skip(",")) {
    if (!sees(Token::Kind::kName) && !sees("(")) {
      break;
    }
    if (sees_name("in")) {
      break;
    }
    tuple.parts.push_back(parse_one_target());
  }
  return tuple;
}

ExpressionPtr Parser::parse_expression(bool with_if) {
  const Nested nested(nesting_, kMaxNesting);
  ExpressionPtr value = parse_or();
  while (with_if && skip_name("if")) {
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    value = node_of(Kind::kIf, "", std::move(condition), std::move(value), std::move(otherwise));
  }
  return value;
}

ExpressionPtr Parser::parse_or() {
  ExpressionPtr left = parse_and();
  while (skip_name("or")) {
    left = node_of(Kind::kOr, "", std::move(left), parse_and());
  }
  return left;
}

ExpressionPtr Parser::parse_and() {
  ExpressionPtr left = parse_not();
  while (skip_name("and")) {
    left = node_of(Kind::kAnd, "", std::move(left), parse_not());
  }
  return left;
}

ExpressionPtr Parser::parse_not() {
  const Nested nested(nesting_, kMaxNesting);
  return skip_name("not") ? node_of(Kind::kUnary, "not", parse_not()) : parse_compare();
}

ExpressionPtr Parser::parse_compare() {
  constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<", "<=", ">", ">="};
  ExpressionPtr first = parse_sum();
  std::vector<std::string> names;
  std::vector<ExpressionPtr> others;
  while (true) {
    if (sees(Token::Kind::kOperator) && std::ranges::find(kOperators, at().text) != kOperators.end()) {
      names.push_back(next().text);
    } else if (sees_name("not") && at(1).is(Token::Kind::kName, "in")) {
      position_ += 2;
      names.emplace_back("not in");
    } else if (skip_name("in")) {
      names.emplace_back("in");
    } else {
      break;
    }
    others.push_back(parse_sum());
  }
  if (names.empty()) {
    return first;
  }
  ExpressionPtr compare = node_of(Kind::kCompare, "", std::move(first));
  for (ExpressionPtr& other : others) {
    adopt(*compare, std::move(other));
  }
  compare->names = std::move(names);
  return compare;
}

ExpressionPtr Parser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (sees("+") || sees("-")) {
    std::string name = next().text;
    left = node_of(Kind::kBinary, std::move(name), std::move(left), parse_concat());
  }
  return left;
}

ExpressionPtr Parser::parse_concat() {
  ExpressionPtr first = parse_product();
  if (!sees("~")) {
    return first;
  }
  ExpressionPtr all = node_of(Kind::kConcat, "", std::move(first));
  while (skip("~")) {
    adopt(*all, parse_product());
  }
  return all;
}

ExpressionPtr Parser::parse_product() {
  ExpressionPtr left = parse_power();
  while (sees("*") || sees("/") || sees("//") || sees("%")) {
    std::string name = next().text;
    left = node_of(Kind::kBinary, std::move(name), std::move(left), parse_power());
  }
  return left;
}

ExpressionPtr Parser::parse_power() {
  ExpressionPtr left = parse_unary();
  while (skip("**")) {
    left = node_of(Kind::kBinary, "**", std::move(left), parse_unary());
  }
  return left;
}

ExpressionPtr Parser::parse_unary(bool with_filters) {
  const Nested nested(nesting_, kMaxNesting);
  ExpressionPtr value;
  if (sees("-") || sees("+")) {
    std::string name = next().text;
    value = node_of(Kind::kUnary, std::move(name), parse_unary(false));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters(std::move(value)) : std::move(value);
}

ExpressionPtr Parser::parse_primary() {
  if (sees(Token::Kind::kName)) {
    return parse_name();
  }
  if (sees(Token::Kind::kString)) {
    ExpressionPtr value = node(Kind::kConstant);
    std::string text;
    while (sees(Token::Kind::kString)) {
      text += next().text;
    }
    value->value = Value::text(text);
    return value;
  }
  if (sees(Token::Kind::kInteger) || sees(Token::Kind::kFloat)) {
    return parse_number();
  }
  if (skip("(")) {
    ExpressionPtr value = parse_tuple(true, true);
    take(")");
    return value;
  }
  if (skip("[")) {
    return parse_list();
  }
  if (skip("{")) {
    return parse_dict();
  }
  refuse("found {}, expected an expression", shown(at()));
}

ExpressionPtr Parser::parse_name() {
  const std::string& name = at().text;
  ExpressionPtr value = node(Kind::kConstant);
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    value->value = name == "true" || name == "True";
  } else if (name != "none" && name != "None") {
    value->kind = Kind::kName;
    value->name = name;
  }
  next();
  return value;
}

ExpressionPtr Parser::parse_number() {
  ExpressionPtr value = node(Kind::kConstant);
  const Token& token = next();
  const char* const end = token.text.data() + token.text.size();
  if (token.kind == Token::Kind::kFloat) {
    double number = 0;
    expect(std::from_chars(token.text.data(), end, number).ec == std::errc(), "the number {} does not fit", token.text);
    value->value = number;
  } else {
    std::int64_t number = 0;
    expect(std::from_chars(token.text.data(), end, number).ec == std::errc(), "the number {} does not fit", token.text);
    expect(token.text == "0" || token.text.front() != '0' || number == 0, "the number {} begins with 0", token.text);
    value->value = number;
  }
  return value;
}

ExpressionPtr Parser::parse_list() {
  ExpressionPtr list = node(Kind::kList);
  while (!skip("]")) {
    if (!list->operands.empty()) {
      take(",");
      if (skip("]")) {
        break;
      }
    }
    adopt(*list, parse_expression());
  }
  return list;
}

ExpressionPtr Parser::parse_dict() {
  ExpressionPtr dict = node(Kind::kDict);
  while (!skip("}")) {
    if (!dict->operands.empty()) {
      take(",");
      if (skip("}")) {
        break;
      }
    }
    adopt(*dict, parse_expression());
    take(":");
    adopt(*dict, parse_expression());
  }
  return dict;
}

// One expression, or a tuple of some where there are commas, or the empty one in brackets.
ExpressionPtr Parser::parse_tuple(bool with_if, bool in_brackets) {
  if (in_brackets && sees(")")) {
    return node(Kind::kTuple);
  }
  ExpressionPtr first = parse_expression(with_if);
  if (!sees(",")) {
    return first;
  }
  ExpressionPtr tuple = node_of(Kind::kTuple, "", std::move(first));
  while (skip(",")) {
    if (sees(")") || sees(Token::Kind::kPrintEnd) || sees(Token::Kind::kBlockEnd)) {
      break;
    }
    adopt(*tuple, parse_expression(with_if));
  }
  return tuple;
}

ExpressionPtr Parser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (skip(".")) {
      if (sees(Token::Kind::kInteger)) {
        ExpressionPtr key = parse_number();
        value = node_of(Kind::kItem, "", std::move(value), std::move(key));
      } else {
        std::string name = take_any_name("an attribute's name");
        value = node_of(Kind::kAttribute, std::move(name), std::move(value));
      }
    } else if (skip("[")) {
      value = parse_subscript(std::move(value));
    } else if (sees("(")) {
      value = node_of(Kind::kCall, "", std::move(value));
      parse_arguments(*value);
    } else {
      return value;
    }
  }
}

ExpressionPtr Parser::parse_subscript(ExpressionPtr value) {
  std::array<ExpressionPtr, 3> parts;
  std::size_t colons = 0;
  while (!sees("]")) {
    if (sees(":") && colons < 2) {
      next();
      ++colons;
    } else {
      expect(parts[colons] == nullptr, "found {}, expected ]", shown(at()));
      parts[colons] = parse_expression();
    }
  }
  take("]");
  if (colons == 0) {
    expect(parts[0] != nullptr, "nothing stands in [], expected a key");
    return node_of(Kind::kItem, "", std::move(value), std::move(parts[0]));
  }
  return node_of(Kind::kSlice, "", std::move(value), std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
}

ExpressionPtr Parser::parse_filters(ExpressionPtr value, bool first_is_named) {
  while (true) {
    if (first_is_named || skip("|")) {
      first_is_named = false;
      value = parse_filter(std::move(value));
    } else if (value != nullptr && skip_name("is")) {
      value = parse_test(std::move(value));
    } else if (value != nullptr && sees("(")) {
      value = node_of(Kind::kCall, "", std::move(value));
      parse_arguments(*value);
    } else {
      return value;
    }
  }
}

std::string Parser::parse_dotted_name(std::string_view what) {
  std::string name = take_any_name(what);
  while (skip(".")) {
    name = fmt::format("{}.{}", name, take_any_name(what));
  }
  return name;
}

ExpressionPtr Parser::parse_filter(ExpressionPtr value) {
  std::string name = parse_dotted_name("a filter's name");
  ExpressionPtr filter = node_of(Kind::kFilter, std::move(name), std::move(value));
  if (sees("(")) {
    parse_arguments(*filter);
  }
  return filter;
}

// `x is [not] name`, with arguments in brackets or one behind it.
ExpressionPtr Parser::parse_test(ExpressionPtr value) {
  const bool is_negated = skip_name("not");
  std::string name = parse_dotted_name("a test's name");
  ExpressionPtr test = node_of(Kind::kTest, std::move(name), std::move(value));
  const bool has_argument = sees(Token::Kind::kName) || sees(Token::Kind::kString) || sees(Token::Kind::kInteger) ||
                            sees(Token::Kind::kFloat) || sees("[") || sees("{");
  if (sees("(")) {
    parse_arguments(*test);
  } else if (has_argument && !sees_name("else") && !sees_name("or") && !sees_name("and")) {
    expect(!sees_name("is"), "one test follows another, expected brackets");
    adopt(*test, parse_postfix(parse_primary()));
  }
  return is_negated ? node_of(Kind::kUnary, "not", std::move(test)) : std::move(test);
}

void Parser::parse_arguments(Expression& call) {
  take("(");
  bool is_first = true;
  while (!skip(")")) {
    if (!is_first) {
      take(",");
      if (skip(")")) {
        break;
      }
    }
    is_first = false;
    expect(!sees("*") && !sees("**"), "arguments with * are not supported");
    if (sees(Token::Kind::kName) && at(1).is(Token::Kind::kOperator, "=")) {
      std::string name = next().text;
      next();
      ExpressionPtr value = parse_expression();
      call.depth = std::max(call.depth, value->depth + 1);
      expect(call.depth <= kMaxExpressionDepth, "the expression is nested more than {} deep", kMaxExpressionDepth);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      expect(call.named.empty(), "an argument without a name follows one with a name");
      adopt(call, parse_expression());
    }
  }
}

}  // namespace

Block parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace lockstep::jinja
