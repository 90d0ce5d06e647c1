// The parser of templates: a class, over a template's tokens. Statements are in parser_statements.cpp, expressions in
// parser_expressions.cpp, what follows a value (attributes, keys, calls, filters, tests) in parser_postfix.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/chat/jinja/ast.h"
#include "data/chat/jinja/lexer.h"

namespace lockstep::jinja {

inline constexpr int kMaxExpressionDepth = 200;
inline constexpr int kMaxNesting = 300;  // of calls that parse an expression: three for one in brackets

// What was found, as messages name it.
[[nodiscard]] std::string shown(const Token& token);

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run();

 private:
  using Kind = Expression::Kind;

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

  // What follows a value.
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

}  // namespace lockstep::jinja
