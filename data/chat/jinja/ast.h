// What a template says, as a tree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// The operands that a kind has are named beside it.
struct Expression {
  enum class Kind : std::uint8_t {
    kConstant,   // value
    kName,       // name
    kList,       // operands
    kTuple,      // operands
    kDict,       // operands: keys and values in turn
    kUnary,      // name: -, +, not; operands: 1
    kBinary,     // name; operands: 2
    kAnd,        // operands: 2
    kOr,         // operands: 2
    kConcat,     // operands: all that ~ joins
    kCompare,    // operands: n + 1; names: n
    kIf,         // operands: condition, value, and otherwise, which may be null
    kAttribute,  // name; operands: of what
    kItem,       // operands: of what, key
    kSlice,      // operands: of what, begin, end, step, of which the last three may be null
    kCall,       // operands: the function, then the positional arguments; named
    kFilter,     // name; operands: the value, null for the text of a block; then as kCall
    kTest,       // name; operands: the value, then as kCall
  };
  Kind kind = Kind::kConstant;
  int line = 1;
  int depth = 1;  // of the tree
  std::string name;
  Value value;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, ExpressionPtr>> named;  // arguments
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

// What is assigned to: a name, a namespace's attribute, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;  // empty: none
  std::vector<Target> parts;
};

struct Parameter {
  std::string name;
  ExpressionPtr otherwise;  // null: none
};

struct Statement {
  enum class Kind : std::uint8_t {
    kText,        // text
    kPrint,       // expression
    kIf,          // branches, otherwise
    kFor,         // target, expression, condition (may be null), body, otherwise
    kBreak,       //
    kContinue,    //
    kSet,         // target, expression
    kSetBlock,    // target, expression (its filters, may be null), body
    kMacro,       // name, parameters, body
    kFilter,      // expression (the filters), body
    kGeneration,  // body
  };
  Kind kind = Kind::kText;
  int line = 1;
  Text text;
  std::string name;
  Target target;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<Parameter> parameters;
  Block body;
  Block otherwise;
};

}  // namespace lockstep::jinja
