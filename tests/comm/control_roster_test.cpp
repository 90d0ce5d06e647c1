// Who is in trouble, concluded from heartbeats; the clock is the test's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "comm/control/roster.h"

namespace lockstep::control {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

class RosterTest : public testing::Test {
 protected:
  RosterTest() {
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_TRUE(roster_.hello({.rank = rank, .world = 2, .attempt = 1, .host = "n1", .process = 100 + rank}, now_));
    }
  }
  // Both workers beat for as long, but for the one left out; the work of `still` does not move.
  std::vector<Trouble> pass(milliseconds length, int silent = -1, int still = -1) {
    std::vector<Trouble> found;
    for (milliseconds passed{0}; passed < length; passed += milliseconds(100)) {
      now_ += milliseconds(100);
      for (int rank = 0; rank < 2; ++rank) {
        if (rank != silent) {
          beat(rank, rank != still);
        }
      }
      for (const Trouble& trouble : roster_.check(now_)) {
        found.push_back(trouble);
      }
    }
    return found;
  }
  void beat(int rank, bool moves) {
    Heartbeat& heartbeat = last_[static_cast<std::size_t>(rank)];
    heartbeat.activity.changes += moves ? 1 : 0;
    heartbeat.cpu_seconds += 1e-6;  // what idle threads use
    roster_.heartbeat(rank, heartbeat, now_);
  }

  Roster::Clock::time_point now_{};
  Roster roster_{{.world = 2,
                  .attempt = 1,
                  .silence = milliseconds(5'000),
                  .still = milliseconds(20'000),
                  .start = milliseconds(30'000),
                  .period = milliseconds(100),
                  .own_host = "n0"},
                 now_};
  std::array<Heartbeat, 2> last_;
};

TEST_F(RosterTest, HasNothingToSayOfWorkersThatAreWell) { EXPECT_THAT(pass(milliseconds(60'000)), IsEmpty()); }

TEST_F(RosterTest, NamesASilentWorkerOnceAndInTime) {
  last_[1].activity = {.phase = Phase::kReduce, .step = 812, .part = 3};
  last_[0].activity.completed_step = 811;
  EXPECT_THAT(pass(milliseconds(1'000)), IsEmpty());
  EXPECT_THAT(pass(milliseconds(4'800), 1), IsEmpty());
  const std::vector<Trouble> found = pass(milliseconds(10'000), 1);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, TroubleKind::kSilent);
  EXPECT_TRUE(found[0].fatal);
  EXPECT_EQ(found[0].step, 811);
  EXPECT_EQ(found[0].text,
            "rank 1 (host n1, process 101) has not answered for 4.9 s; last seen in step 812: reduce bucket 3");
}

TEST_F(RosterTest, WaitsForAWorkerWhoseConnectionBroke) {
  roster_.closed(1, now_);
  EXPECT_FALSE(roster_.hello({.rank = 1, .world = 2, .attempt = 1, .host = "n1", .process = 999}, now_));
  EXPECT_TRUE(roster_.hello({.rank = 1, .world = 2, .attempt = 1, .host = "n1", .process = 101}, now_));
  EXPECT_THAT(pass(milliseconds(3'000)), IsEmpty());
  roster_.closed(1, now_);
  EXPECT_THAT(pass(milliseconds(900), 1), IsEmpty());
  EXPECT_THAT(pass(milliseconds(900), 1),
              ElementsAre(Field(&Trouble::text, HasSubstr("(host n1, process 101) is gone"))));
}

// The other one's process is known to be gone at once, since it would be on this machine.
TEST_F(RosterTest, NamesFirstWhoWasGoneFirst) {
  constexpr std::int64_t kNoProcess = 0x7ffffff0;
  Roster roster({.world = 2,
                 .attempt = 1,
                 .silence = milliseconds(5'000),
                 .still = milliseconds(20'000),
                 .start = milliseconds(30'000),
                 .period = milliseconds(100),
                 .own_host = "n0"},
                now_);
  EXPECT_TRUE(roster.hello({.rank = 0, .world = 2, .attempt = 1, .host = "n0", .process = kNoProcess}, now_));
  EXPECT_TRUE(roster.hello({.rank = 1, .world = 2, .attempt = 1, .host = "n1", .process = 101}, now_));
  roster.closed(1, now_);
  roster.closed(0, now_ + milliseconds(300));
  EXPECT_THAT(roster.check(now_ + milliseconds(900)), IsEmpty());
  const std::vector<Trouble> found = roster.check(now_ + milliseconds(1'000));
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].rank, 1);
  EXPECT_EQ(found[1].rank, 0);
}

TEST_F(RosterTest, SaysNothingOfAWorkerThatEndedWell) {
  roster_.farewell(1, {}, now_);
  roster_.closed(1, now_);
  EXPECT_THAT(pass(milliseconds(10'000), 1), IsEmpty());
  EXPECT_FALSE(roster_.all_ended());
  roster_.farewell(0, {}, now_);
  EXPECT_TRUE(roster_.all_ended());
}

TEST_F(RosterTest, KnowsWhatAllEndedWith) {
  EXPECT_EQ(roster_.common_exit_code(), std::nullopt);
  roster_.farewell(0, {.exit_code = 75, .message = "", .again_is_useless = false}, now_);
  EXPECT_EQ(roster_.common_exit_code(), std::nullopt);
  roster_.farewell(1, {.exit_code = 75, .message = "", .again_is_useless = false}, now_);
  EXPECT_EQ(roster_.common_exit_code(), 75);
  roster_.farewell(1, {.exit_code = 1, .message = "", .again_is_useless = false}, now_);
  EXPECT_EQ(roster_.common_exit_code(), std::nullopt);
}

TEST_F(RosterTest, RepeatsWhatAFailedWorkerSaid) {
  roster_.farewell(1, {.exit_code = 1, .message = "data/00000.h5: gone", .again_is_useless = true}, now_);
  const std::vector<Trouble> found = pass(milliseconds(200), 1);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, TroubleKind::kFailed);
  EXPECT_FALSE(found[0].fatal);
  EXPECT_TRUE(found[0].again_is_useless);
  EXPECT_EQ(found[0].exit_code, 1);
  EXPECT_EQ(found[0].text, "rank 1 (host n1): data/00000.h5: gone");
}

TEST_F(RosterTest, WarnsOfWorkThatStandsStillAndGivesUpLater) {
  last_[1].activity.phase = Phase::kSnapshot;
  last_[1].thread_state = 'D';
  const std::vector<Trouble> found = pass(milliseconds(30'000), -1, 1);
  ASSERT_EQ(found.size(), 2U);
  EXPECT_FALSE(found[0].fatal);
  EXPECT_THAT(found[0].text, StartsWith("rank 1 (host n1, process 101) answers, but its work has stood still for 4.9 s "
                                        "(thread state D)"));
  EXPECT_TRUE(found[1].fatal);
  EXPECT_THAT(found[1].text, HasSubstr("for 20.0 s"));
}

TEST_F(RosterTest, DoesNotBlameWhoWaitsForOthers) {
  last_[1].activity.phase = Phase::kReduce;
  EXPECT_THAT(pass(milliseconds(60'000), -1, 1), IsEmpty());
}

TEST_F(RosterTest, SeesWorkInProcessorTimeAndFiles) {
  last_[1].activity.phase = Phase::kGradients;
  for (int i = 0; i < 10; ++i) {
    last_[1].cpu_seconds += 0.1;
    EXPECT_THAT(pass(milliseconds(4'000), -1, 1), IsEmpty());
    last_[1].io_bytes += 1;
    EXPECT_THAT(pass(milliseconds(4'000), -1, 1), IsEmpty());
  }
}

TEST_F(RosterTest, BlamesNobodyWhenItStoodStillItself) {
  now_ += milliseconds(60'000);
  EXPECT_THAT(roster_.check(now_), IsEmpty());
  EXPECT_THAT(pass(milliseconds(10'000)), IsEmpty());
}

TEST_F(RosterTest, TurnsAwayWhoDoesNotBelongToTheAttempt) {
  EXPECT_FALSE(roster_.hello({.rank = 1, .world = 2, .attempt = 2, .host = "n1", .process = 101}, now_));
  EXPECT_FALSE(roster_.hello({.rank = 2, .world = 2, .attempt = 1, .host = "n1", .process = 102}, now_));
  EXPECT_FALSE(roster_.hello({.rank = -1, .world = 2, .attempt = 1, .host = "n1", .process = 102}, now_));
  EXPECT_FALSE(roster_.hello({.rank = 1, .world = 4, .attempt = 1, .host = "n1", .process = 101}, now_));
  EXPECT_FALSE(roster_.hello({.rank = 1, .world = 2, .attempt = 1, .host = "n1", .process = 101}, now_));  // is there
}

TEST(RosterOfNobodyTest, NamesWhoDidNotComeUp) {
  const Roster::Clock::time_point begin{};
  Roster roster({.world = 4, .attempt = 1, .start = milliseconds(2'000)}, begin);
  EXPECT_TRUE(roster.hello({.rank = 2, .world = 4, .attempt = 1, .host = "n1", .process = 7}, begin));
  EXPECT_THAT(roster.check(begin + milliseconds(1'000)), IsEmpty());
  const std::vector<Trouble> found = roster.check(begin + milliseconds(2'000));
  EXPECT_THAT(found, ElementsAre(Field(&Trouble::text, "ranks 0, 1, 3 of 4 did not come up within 2 s")));
  EXPECT_THAT(roster.check(begin + milliseconds(2'100)), IsEmpty());
}

TEST(MessageTest, IsReadBackAsItWasWritten) {
  JobState job{.attempt = 3, .world = 2, .stop_requested = true, .refused_connections = 5};
  job.workers.push_back({.rank = 1, .host = "n\x01 \xff", .process = 7, .connected = true, .silent_seconds = 0.25});
  job.workers[0].last.activity = {.phase = Phase::kEvaluate, .step = 9, .part = 2, .changes = 77, .loss = 2.5};
  job.workers[0].last.thread_state = 'S';
  const JobState read = std::get<JobState>(parse_message(to_text(job)));
  EXPECT_EQ(read.attempt, 3);
  EXPECT_TRUE(read.stop_requested);
  EXPECT_EQ(read.refused_connections, 5U);
  ASSERT_EQ(read.workers.size(), 1U);
  EXPECT_EQ(read.workers[0].silent_seconds, 0.25);
  EXPECT_EQ(read.workers[0].last.activity.phase, Phase::kEvaluate);
  EXPECT_EQ(read.workers[0].last.activity.changes, 77U);
  EXPECT_EQ(read.workers[0].last.activity.loss, 2.5);
  EXPECT_EQ(read.workers[0].last.thread_state, 'S');

  Heartbeat without_loss;
  without_loss.activity.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(std::get<Heartbeat>(parse_message(to_text(without_loss))).activity.loss));

  const Farewell farewell = std::get<Farewell>(parse_message(to_text(Farewell{1, "disk full", true})));
  EXPECT_EQ(farewell.message, "disk full");
  EXPECT_TRUE(farewell.again_is_useless);
  EXPECT_EQ(std::get<Command>(parse_message(to_text(Command{Order::kEnd, "why"}))).reason, "why");
  EXPECT_EQ(std::get<Ask>(parse_message(to_text(Ask{Question::kStop}))).question, Question::kStop);
  EXPECT_EQ(std::get<Hello>(parse_message(to_text(Hello{.rank = 5, .world = 8}))).rank, 5);
}

TEST(MessageTest, RefusesWhatIsNone) {
  for (const char* text : {"", "{", "[]", "null", "{}", R"({"kind":"nothing"})", R"({"kind":"hello"})",
                           R"({"kind":"hello","rank":"x"})", R"({"kind":"command","order":1})"}) {
    EXPECT_THROW((void)parse_message(text), Error) << text;
  }
}

class ReplacingRosterTest : public testing::Test {
 protected:
  ReplacingRosterTest() {
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_TRUE(say_hello(rank, 100 + rank));
    }
  }
  bool say_hello(int rank, int process) {
    return roster_.hello({.rank = rank, .world = 2, .attempt = 1, .host = "n1", .process = process}, now_);
  }
  // What is found while rank 0 beats.
  std::vector<Trouble> pass(milliseconds length) {
    std::vector<Trouble> found;
    for (milliseconds passed{0}; passed < length; passed += milliseconds(100)) {
      now_ += milliseconds(100);
      ++last_.activity.changes;
      roster_.heartbeat(0, last_, now_);
      for (const Trouble& trouble : roster_.check(now_)) {
        found.push_back(trouble);
      }
    }
    return found;
  }

  Roster::Clock::time_point now_{};
  Roster roster_{{.world = 2,
                  .attempt = 1,
                  .silence = milliseconds(5'000),
                  .start = milliseconds(30'000),
                  .replaces_workers = true,
                  .own_host = "n0"},
                 now_};
  Heartbeat last_;
};

TEST_F(ReplacingRosterTest, TakesAnotherProcessForARankThatIsLost) {
  const std::vector<Trouble> found = pass(milliseconds(40'000));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, TroubleKind::kSilent);
  EXPECT_TRUE(found[0].lost);
  EXPECT_FALSE(found[0].fatal);
  EXPECT_FALSE(say_hello(1, 999)) << "nobody is to be replaced";
  roster_.replace(1, now_);
  EXPECT_THAT(pass(milliseconds(29'000)), IsEmpty());
  EXPECT_FALSE(say_hello(1, 101)) << "the one that was replaced";
  EXPECT_TRUE(say_hello(1, 999));
  EXPECT_THAT(pass(milliseconds(4'000)), IsEmpty());
  EXPECT_EQ(roster_.state(now_).workers.at(1).process, 999);
}

TEST_F(ReplacingRosterTest, NamesAReplacementThatDoesNotComeUp) {
  roster_.closed(1, now_);
  EXPECT_THAT(pass(milliseconds(2'000)), ElementsAre(Field(&Trouble::kind, TroubleKind::kGone)));
  roster_.replace(1, now_);
  const std::vector<Trouble> found = pass(milliseconds(40'000));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, TroubleKind::kMissing);
  EXPECT_TRUE(found[0].fatal);
  EXPECT_EQ(found[0].text, "rank 1 of 2 did not come up within 30 s");
}

TEST_F(ReplacingRosterTest, TellsOfAWorkerThatEndedForOthers) {
  roster_.farewell(1, {.exit_code = 1}, now_);
  const std::vector<Trouble> found = pass(milliseconds(200));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, TroubleKind::kLeft);
  EXPECT_FALSE(found[0].fatal);
  EXPECT_FALSE(found[0].lost);
  EXPECT_EQ(found[0].exit_code, 1);
}

}  // namespace
}  // namespace lockstep::control
