#include "comm/control/message.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lockstep::control {

using nlohmann::json;

NLOHMANN_JSON_SERIALIZE_ENUM(Phase, {{Phase::kStarting, "starting"},
                                     {Phase::kLoading, "loading"},
                                     {Phase::kData, "data"},
                                     {Phase::kGradients, "gradients"},
                                     {Phase::kReduce, "reduce"},
                                     {Phase::kExchange, "exchange"},
                                     {Phase::kUpdate, "update"},
                                     {Phase::kEvaluate, "evaluate"},
                                     {Phase::kSnapshot, "snapshot"},
                                     {Phase::kSaving, "saving"},
                                     {Phase::kEnding, "ending"}})
NLOHMANN_JSON_SERIALIZE_ENUM(
    Order, {{Order::kAlive, "alive"}, {Order::kSave, "save"}, {Order::kStop, "stop"}, {Order::kEnd, "end"}})
NLOHMANN_JSON_SERIALIZE_ENUM(Question,
                             {{Question::kState, "state"}, {Question::kSave, "save"}, {Question::kStop, "stop"}})

namespace {

// JSON has no number that is none.
json number(double value) { return std::isfinite(value) ? json(value) : json(); }
double number_from(const json& value) { return value.is_null() ? std::nan("") : value.get<double>(); }

json to_object(const ActivityState& state) {
  return {{"phase", state.phase},
          {"step", state.step},
          {"part", state.part},
          {"changes", state.changes},
          {"seconds", state.seconds},
          {"completed_step", state.completed_step},
          {"total_steps", state.total_steps},
          {"first_step", state.first_step},
          {"loss", number(state.loss)},
          {"tokens_per_s", number(state.tokens_per_s)},
          {"saved_step", state.saved_step},
          {"save_seconds", state.save_seconds}};
}

ActivityState activity_from(const json& object) {
  ActivityState state;
  object.at("phase").get_to(state.phase);
  object.at("step").get_to(state.step);
  object.at("part").get_to(state.part);
  object.at("changes").get_to(state.changes);
  object.at("seconds").get_to(state.seconds);
  object.at("completed_step").get_to(state.completed_step);
  object.at("total_steps").get_to(state.total_steps);
  object.at("first_step").get_to(state.first_step);
  state.loss = number_from(object.at("loss"));
  state.tokens_per_s = number_from(object.at("tokens_per_s"));
  object.at("saved_step").get_to(state.saved_step);
  object.at("save_seconds").get_to(state.save_seconds);
  return state;
}

json to_object(const Heartbeat& heartbeat) {
  return {{"activity", to_object(heartbeat.activity)},
          {"cpu_seconds", heartbeat.cpu_seconds},
          {"thread_state", std::string(1, heartbeat.thread_state)},
          {"io_bytes", heartbeat.io_bytes}};
}

Heartbeat heartbeat_from(const json& object) {
  Heartbeat heartbeat;
  heartbeat.activity = activity_from(object.at("activity"));
  object.at("cpu_seconds").get_to(heartbeat.cpu_seconds);
  object.at("io_bytes").get_to(heartbeat.io_bytes);
  heartbeat.thread_state = object.at("thread_state").get<std::string>().at(0);
  return heartbeat;
}

json to_object(const JobState& job) {
  json workers = json::array();
  for (const WorkerState& worker : job.workers) {
    workers.push_back({{"rank", worker.rank},
                       {"host", worker.host},
                       {"process", worker.process},
                       {"connected", worker.connected},
                       {"ended", worker.ended},
                       {"silent_seconds", worker.silent_seconds},
                       {"still_seconds", worker.still_seconds},
                       {"last", to_object(worker.last)}});
  }
  return {{"attempt", job.attempt},
          {"world", job.world},
          {"stop_requested", job.stop_requested},
          {"refused_connections", job.refused_connections},
          {"workers", std::move(workers)}};
}

JobState job_from(const json& object) {
  JobState job;
  object.at("attempt").get_to(job.attempt);
  object.at("world").get_to(job.world);
  object.at("stop_requested").get_to(job.stop_requested);
  object.at("refused_connections").get_to(job.refused_connections);
  for (const json& each : object.at("workers")) {
    WorkerState worker;
    each.at("rank").get_to(worker.rank);
    each.at("host").get_to(worker.host);
    each.at("process").get_to(worker.process);
    each.at("connected").get_to(worker.connected);
    each.at("ended").get_to(worker.ended);
    each.at("silent_seconds").get_to(worker.silent_seconds);
    each.at("still_seconds").get_to(worker.still_seconds);
    worker.last = heartbeat_from(each.at("last"));
    job.workers.push_back(std::move(worker));
  }
  return job;
}

struct ToObject {
  json operator()(const Hello& hello) const {
    return {{"kind", "hello"},
            {"rank", hello.rank},
            {"world", hello.world},
            {"attempt", hello.attempt},
            {"host", hello.host},
            {"process", hello.process},
            {"process_namespace", hello.process_namespace}};
  }
  json operator()(const Heartbeat& heartbeat) const {
    json object = to_object(heartbeat);
    object["kind"] = "heartbeat";
    return object;
  }
  json operator()(const Farewell& farewell) const {
    return {{"kind", "farewell"},
            {"exit_code", farewell.exit_code},
            {"message", farewell.message},
            {"again_is_useless", farewell.again_is_useless}};
  }
  json operator()(const Command& command) const {
    return {{"kind", "command"}, {"order", command.order}, {"reason", command.reason}};
  }
  json operator()(const Ask& ask) const { return {{"kind", "ask"}, {"question", ask.question}}; }
  json operator()(const JobState& job) const {
    json object = to_object(job);
    object["kind"] = "job";
    return object;
  }
};

Message from_object(const json& object) {
  const auto kind = object.at("kind").get<std::string>();
  if (kind == "hello") {
    Hello hello;
    object.at("rank").get_to(hello.rank);
    object.at("world").get_to(hello.world);
    object.at("attempt").get_to(hello.attempt);
    object.at("host").get_to(hello.host);
    object.at("process").get_to(hello.process);
    object.at("process_namespace").get_to(hello.process_namespace);
    return hello;
  }
  if (kind == "heartbeat") {
    return heartbeat_from(object);
  }
  if (kind == "farewell") {
    Farewell farewell;
    object.at("exit_code").get_to(farewell.exit_code);
    object.at("message").get_to(farewell.message);
    object.at("again_is_useless").get_to(farewell.again_is_useless);
    return farewell;
  }
  if (kind == "command") {
    return Command{object.at("order").get<Order>(), object.at("reason").get<std::string>()};
  }
  if (kind == "ask") {
    return Ask{object.at("question").get<Question>()};
  }
  if (kind == "job") {
    return job_from(object);
  }
  fail(ErrorCode::kCorrupt, "control: a message of the kind \"{}\"", kind);
}

}  // namespace

std::string to_text(const Message& message) {
  // A host name may be any bytes.
  return std::visit(ToObject{}, message).dump(-1, ' ', false, json::error_handler_t::replace);
}

Message parse_message(const std::string& text) {
  try {
    return from_object(json::parse(text));
  } catch (const std::exception& error) {
    fail(ErrorCode::kCorrupt, "control: not a message: {}", error.what());
  }
}

}  // namespace lockstep::control
