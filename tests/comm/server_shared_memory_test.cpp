// Memory that a worker shares with a server on its machine.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "comm/control/asio.h"
#include "comm/server/connection.h"
#include "comm/server/shared_memory.h"
#include "tests/comm/server_job.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

using server::OthersMemory;
using server::OwnMemory;
using server::SharedMemory;
using testing::HasSubstr;

constexpr std::size_t kBytes = 10'000;

std::string why_refused(const SharedMemory& memory) {
  try {
    const OthersMemory others(memory, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "";
}

TEST(SharedMemoryTest, IsTheSameForBothSides) {
  const std::shared_ptr<OwnMemory> own = OwnMemory::create(kBytes);
  ASSERT_NE(own, nullptr);
  EXPECT_EQ(own->bytes().size(), kBytes);
  EXPECT_THAT(own->bytes(), testing::Each(std::byte{0}));
  const OthersMemory others(own->description(), 1);
  own->bytes()[4096] = std::byte{7};
  EXPECT_EQ(others.part(4096, 8, 4)[0], std::byte{7});
  others.part(kBytes - 4, 4, 4)[3] = std::byte{9};
  EXPECT_EQ(own->bytes()[kBytes - 1], std::byte{9});
}

TEST(SharedMemoryTest, LastsAsLongAsOneSideHasIt) {
  std::shared_ptr<OwnMemory> own = OwnMemory::create(kBytes);
  own->bytes()[5] = std::byte{5};
  const SharedMemory description = own->description();
  const OthersMemory others(description, 0);
  own.reset();
  EXPECT_EQ(others.part(5, 1, 1)[0], std::byte{5});
  EXPECT_NE(why_refused(description), "");
}

TEST(SharedMemoryTest, HasNothingBehindItsEnd) {
  const std::shared_ptr<OwnMemory> own = OwnMemory::create(kBytes);
  const OthersMemory others(own->description(), 0);
  EXPECT_EQ(others.part(kBytes, 0, 4).size(), 0U);
  EXPECT_THROW((void)others.part(kBytes, 4, 4), Error);
  EXPECT_THROW((void)others.part(kBytes - 4, 8, 4), Error);
  EXPECT_THROW((void)others.part(6, 4, 4), Error);
  EXPECT_THROW((void)others.part(~std::uint64_t{3}, 8, 4), Error);
}

TEST(SharedMemoryTest, IsRefusedWhenItIsNotWhatWasDescribed) {
  const std::shared_ptr<OwnMemory> own = OwnMemory::create(kBytes);
  EXPECT_EQ(why_refused(own->description()), "");
  SharedMemory other = own->description();
  other.secret[31] ^= std::byte{1};
  EXPECT_THAT(why_refused(other), HasSubstr("it is another process's"));
  other = own->description();
  other.bytes = 1'000'000;
  EXPECT_THAT(why_refused(other), HasSubstr("it has 131072 bytes, expected 1114112"));
  other.bytes = 0;
  EXPECT_THAT(why_refused(other), HasSubstr("shared memory of 0 bytes"));
  other.bytes = ~std::uint64_t{0};
  EXPECT_THAT(why_refused(other), HasSubstr("shared memory of 18446744073709551615 bytes"));
  other = own->description();
  other.process = 0x7fffffff;
  EXPECT_THAT(why_refused(other), HasSubstr("No such file"));
}

// What is at that number in the process may be anything.
TEST(SharedMemoryTest, IsRefusedWhenItIsNoMemory) {
  SharedMemory other = OwnMemory::create(kBytes)->description();
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const int shrinks = ::memfd_create("lockstep", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  const int other_memory = ::memfd_create("other", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  for (const int memory : {shrinks, other_memory}) {
    ASSERT_EQ(::ftruncate(memory, 1 << 20), 0);
  }
  const int device = ::open("/dev/zero", O_RDWR | O_CLOEXEC);
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  for (const int descriptor : {pipe[0], other_memory, device, socket}) {
    other.descriptor = static_cast<std::uint32_t>(descriptor);
    EXPECT_THAT(why_refused(other), HasSubstr("it is no such memory"));
  }
  other.descriptor = static_cast<std::uint32_t>(shrinks);
  EXPECT_THAT(why_refused(other), HasSubstr("it could shrink"));
  for (const int descriptor : {pipe[0], pipe[1], shrinks, other_memory, device, socket}) {
    ::close(descriptor);
  }
}

// Of this process, in which both sides are.
std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("/memfd:lockstep") != std::string::npos ? 1 : 0;
  }
  return count;
}

// At every server, which a barrier does not come to.
void meet(Communicator& comm) {
  std::vector<float> elements(8);
  comm.all_reduce_sum(view_of(std::span(elements))).wait();
}

TEST(ServerSharedMemoryTest, IsMappedByEveryServerAndGivenBack) {
  test::ServerJob job(2, 2);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 0);
    {
      const Buffer buffer = comm->allocate(1 << 20);
      meet(*comm);
      meet(*comm);  // the other's is there, too
      EXPECT_EQ(mappings(), 2U * (1 + 2));
      meet(*comm);
    }
    meet(*comm);
    meet(*comm);
    EXPECT_EQ(mappings(), 0U);
    comm->close();
  });
  EXPECT_THAT(errors, testing::Each(""));
}

// Where nobody shares it, a buffer is ordinary memory.
TEST(ServerSharedMemoryTest, IsNotMadeWhereItIsNotWanted) {
  test::ServerJob job(1);
  server::Session::Options options = job.options(0);
  options.shares_memory = false;
  const auto comm = make_server_communicator(std::move(options), 0);
  const Buffer buffer = comm->allocate(1 << 20);
  EXPECT_EQ(mappings(), 0U);
  comm->close();
}

// A worker that says where its contribution lies, but shares nothing, or less.
boost::asio::awaitable<void> push_from_nowhere(std::uint16_t port, control::JobToken token, server::Place place) {
  namespace asio = boost::asio;
  asio::ip::tcp::socket socket(co_await asio::this_coro::executor);
  co_await socket.async_connect({asio::ip::address_v4::loopback(), port}, asio::use_awaitable);
  const auto connection = co_await server::Connection::greet(socket, token);
  const server::Hello hello{.rank = 1, .timeout_ms = 20'000, .process = 1, .insists = true, .name = "worker 1"};
  connection->send({.type = server::FrameType::kHello}, encode(hello));
  const server::FrameHeader welcome = co_await connection->read_header();
  (void)co_await connection->read_small_payload(welcome);
  const std::shared_ptr<OwnMemory> own = OwnMemory::create(kBytes);
  connection->send({.type = server::FrameType::kMemory}, encode(own->description()));
  const server::FrameHeader answer = co_await connection->read_header();
  const server::MemoryUse use = server::decode_memory_use(co_await connection->read_small_payload(answer));
  EXPECT_EQ(use, (server::MemoryUse{own->description().number, true}));
  place.memory += use.number;
  server::FrameHeader push{
      .type = server::FrameType::kPush, .dtype = DType::kF32, .wire = server::Wire::kInMemory, .call = 1, .rank = 1};
  push.count = 2;
  push.end = 2;
  push.wanted_end = 2;
  connection->send(push, encode(place));
  (void)co_await connection->read_header();  // the server ends the group
  connection->close();
}

TEST(ServerSharedMemoryTest, APlaceThatIsNotThereEndsTheGroup) {
  for (const auto& [place, why] : {std::pair(server::Place{.memory = 1, .offset = 0}, "which is not there"),
                                   std::pair(server::Place{.memory = 0, .offset = kBytes - 4},
                                             "8 bytes at 9996 of shared memory of 10000 bytes")}) {
    server::Server::Options server_options;
    test::ServerJob job(2, 1, server_options);
    std::string error;
    std::thread worker([&] {
      const auto comm = make_server_communicator(job.options(0), 1);
      try {
        comm->barrier();
      } catch (const Error& found) {
        error = found.what();
      }
    });
    boost::asio::io_context io;
    boost::asio::co_spawn(io, push_from_nowhere(job.server().port(), server_options.token, place),
                          [](const std::exception_ptr&) {});
    io.run();
    worker.join();
    EXPECT_THAT(error, testing::AllOf(HasSubstr("rank 1 (worker 1) is gone"), HasSubstr(why)));
  }
}

// The old server's mapping is another memory than the one that the next group uses.
TEST(ServerSharedMemoryTest, IsMadeAnewForTheNextGroup) {
  server::Server::Options options;
  options.wait = std::chrono::seconds(20);
  test::ServerJob job(2, 1, options);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    for (int group = 0; group < 2; ++group) {
      const auto comm = make_server_communicator(job.options(rank), 0);
      try {
        constexpr std::size_t kCount = 300'000;
        const Buffer buffer = comm->allocate(kCount * sizeof(float));
        const std::span<float> values = buffer.as<float>(kCount);
        comm->barrier();
        for (int i = 0; group == 0 || i < 3; ++i) {
          if (rank == 0 && i == 3) {
            job.stop_server(0);
            job.start_server(0);
          }
          std::fill(values.begin(), values.end(), 1.0F + static_cast<float>(i));
          comm->all_reduce_sum(view_of(values)).wait();
          EXPECT_THAT(values, testing::Each(2 * (1.0F + static_cast<float>(i))));
        }
        comm->barrier();
      } catch (const Error&) {
        EXPECT_EQ(group, 0);
        EXPECT_TRUE(comm->may_rejoin());
        continue;
      }
      comm->close();
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

}  // namespace
}  // namespace lockstep
