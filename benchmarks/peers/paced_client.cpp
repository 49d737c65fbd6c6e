// A load generator that does not wait for answers: a request is due every so many microseconds,
// whatever became of the ones before, and its time counts from then. A server that stalls is asked
// on, so that what piles up shows in the times of all that had to wait.
//
//   paced_client PORT CONNECTIONS PER_SECOND REQUEST LOG REPLY...
//
// PORT is one of 127.0.0.1; REQUEST and REPLYs are files of gRPC messages, and each answer must be,
// byte for byte, one of the REPLYs; requests go to the connections in turn. LOG takes 24 bytes an
// answer: when its request was due (ns of the monotonic clock), µs from then until the answer came, µs
// from then until it was sent (this program's own delay, which is part of the former), which reply it
// was (from 0; -1: an error, -2: none of them), and nothing. It says "sending" once the first answer
// came, sends until its input ends, waits ten seconds at most for what is under way (after that it has
// failed: the server does not keep up) and prints how many requests failed and how many answers were
// not expected, as JSON.
//
// As checking_client.cpp, which sends as fast as answers come, it speaks as much of HTTP/2 (RFC 9113)
// as that needs. It sleeps until the next request is due: a loop that looks at the clock would take
// one of the processors from what is measured.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::chrono::nanoseconds;

constexpr int32_t ERROR = -1, UNEXPECTED = -2;
constexpr uint8_t DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7,
                  WINDOW_UPDATE = 8;
constexpr uint8_t END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8;
constexpr int64_t WINDOW = 65'535;  // that each side of a connection begins with
constexpr size_t FRAME_HEAD = 9;
constexpr std::chrono::seconds PATIENCE{10};  // after the last request

struct Answer {
  int64_t due_ns;
  int32_t took_us, late_us, reply, nothing;
};
static_assert(sizeof(Answer) == 24);

int64_t nanoseconds(Clock::time_point at) { return Nanoseconds(at.time_since_epoch()).count(); }

int32_t microseconds(Clock::duration took) {
  return static_cast<int32_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
}

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string big_endian(uint32_t value) {
  value = htonl(value);
  return {reinterpret_cast<const char*>(&value), 4};
}

uint32_t number_at(const char* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return ntohl(value);
}

std::string frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  std::string out = big_endian(static_cast<uint32_t>(payload.size())).substr(1);
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(flags));
  return out + big_endian(stream) + payload;
}

// A string of HPACK (RFC 7541) below 127 bytes, not compressed.
std::string text(const std::string& value) { return static_cast<char>(value.size()) + value; }

// What all connections share.
struct Work {
  std::string message;  // as gRPC frames it
  std::vector<std::string> expected;
  std::FILE* log;
  int64_t failed = 0, unexpected = 0;
  std::string complaint;
};

class Connection {
 public:
  Connection(Work& work, int port) : work_(work) {
    socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("cannot connect");
    }
    const int on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::fcntl(socket_, F_SETFL, O_NONBLOCK);
    out_ = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, "");
    flush();
  }
  ~Connection() { ::close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int socket() const { return lost_ ? -1 : socket_; }
  short events() const { return static_cast<short>(out_.empty() ? POLLIN : POLLIN | POLLOUT); }
  bool idle() const { return open_.empty() && waiting_.empty(); }

  // A request is due, or was a while ago.
  void ask(Clock::time_point due) {
    waiting_.push_back(due);
    if (lost_) return fail("the connection was lost before");
    send();
    flush();
  }

  // Whatever was not answered has failed.
  void give_up() { lost("not answered within ten seconds of the last request"); }

  // There is something to read, or room to write.
  void go_on() {
    char part[1 << 16];
    const ssize_t size = ::recv(socket_, part, sizeof part, 0);
    if (size == 0) return lost("the connection was closed");
    if (size < 0 && errno != EAGAIN && errno != EINTR) return lost("the connection was reset");
    if (size > 0) in_.append(part, static_cast<size_t>(size));
    size_t at = 0;
    while (in_.size() - at >= FRAME_HEAD) {
      const uint32_t length = number_at(&in_[at]) >> 8;
      if (in_.size() - at < FRAME_HEAD + length) break;
      take(static_cast<uint8_t>(in_[at + 3]), static_cast<uint8_t>(in_[at + 4]),
           number_at(&in_[at + 5]) & 0x7fffffff, &in_[at + FRAME_HEAD], length);
      at += FRAME_HEAD + length;
    }
    in_.erase(0, at);
    if (lost_) return;
    send();
    flush();
  }

 private:
  struct Open {
    Clock::time_point due, sent;
    std::string reply;
  };

  // What waits, as far as the server lets us.
  void send() {
    while (!waiting_.empty() && window_ >= static_cast<int64_t>(work_.message.size())) {
      window_ -= static_cast<int64_t>(work_.message.size());
      // POST and http are known; the rest is put into the table once, latest first from index 62.
      std::string headers = "\x83\x86";
      if (next_ == 1) {
        headers += "\x44" + text("/inference.GRPCInferenceService/ModelInfer");
        headers += "\x41" + text("127.0.0.1");
        headers += std::string("\x40") + text("te") + text("trailers");
        headers += "\x5f" + text("application/grpc");
      } else {
        headers += "\xc1\xc0\xbf\xbe";
      }
      open_[next_] = {waiting_.front(), Clock::now(), {}};
      waiting_.pop_front();
      out_ += frame(HEADERS, END_HEADERS, next_, headers);
      out_ += frame(DATA, END_STREAM, next_, work_.message);
      next_ += 2;
    }
  }

  // Never waits: what the socket does not take goes out when it does.
  void flush() {
    while (!out_.empty()) {
      const ssize_t size = ::send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL);
      if (size < 0 && errno == EINTR) continue;
      if (size < 0 && errno == EAGAIN) return;
      if (size < 0) return lost("the connection was reset");
      out_.erase(0, static_cast<size_t>(size));
    }
  }

  void take(uint8_t type, uint8_t flags, uint32_t stream, const char* payload, uint32_t length) {
    if (type == SETTINGS && !(flags & ACK)) {
      out_ += frame(SETTINGS, ACK, 0, "");
    } else if (type == PING && !(flags & ACK)) {
      out_ += frame(PING, ACK, 0, {payload, length});
    } else if (type == WINDOW_UPDATE && stream == 0) {
      window_ += number_at(payload) & 0x7fffffff;
    } else if (type == GOAWAY) {
      lost("the server went away");
    } else if (type == RST_STREAM) {
      answered(stream, "the stream was reset");
    } else if (type == DATA) {
      received_ += length;
      if (received_ > WINDOW / 2) {
        out_ += frame(WINDOW_UPDATE, 0, 0, big_endian(static_cast<uint32_t>(received_)));
        received_ = 0;
      }
      if (flags & PADDED) throw std::runtime_error("a padded frame");
      const auto found = open_.find(stream);
      if (found != open_.end()) found->second.reply.append(payload, length);
    }
    if ((type == DATA || type == HEADERS) && (flags & END_STREAM)) answered(stream, "no message");
  }

  void answered(uint32_t stream, const char* complaint) {
    const auto found = open_.find(stream);
    if (found == open_.end()) return;
    const std::string& reply = found->second.reply;
    const auto known = std::find(work_.expected.begin(), work_.expected.end(), reply);
    int32_t index = static_cast<int32_t>(known - work_.expected.begin());
    if (reply.empty()) {
      index = ERROR;
    } else if (known == work_.expected.end()) {
      index = UNEXPECTED;
    }
    write(found->second.due, found->second.sent, index, complaint);
    open_.erase(found);
  }

  void write(Clock::time_point due, Clock::time_point sent, int32_t reply, const char* complaint) {
    if (reply == ERROR && work_.failed++ == 0) work_.complaint = complaint;
    if (reply == UNEXPECTED) ++work_.unexpected;
    const Answer answer{nanoseconds(due), microseconds(Clock::now() - due),
                        microseconds(sent - due), reply, 0};
    std::fwrite(&answer, sizeof answer, 1, work_.log);
  }

  void lost(const char* complaint) {
    lost_ = true;
    out_.clear();
    for (const auto& [stream, open] : open_) write(open.due, open.sent, ERROR, complaint);
    open_.clear();
    fail(complaint);
  }

  void fail(const char* complaint) {
    for (const auto due : waiting_) write(due, Clock::now(), ERROR, complaint);
    waiting_.clear();
  }

  Work& work_;
  int socket_;
  std::string in_, out_;
  std::unordered_map<uint32_t, Open> open_;
  std::deque<Clock::time_point> waiting_;  // due, and the server's window was full
  uint32_t next_ = 1;
  int64_t window_ = WINDOW, received_ = 0;
  bool lost_ = false;
};

int run(int argc, char** argv) {
  if (argc < 7) throw std::runtime_error("PORT CONNECTIONS PER_SECOND REQUEST LOG REPLY...");
  Work work;
  const auto framed = [](const std::string& message) {
    return '\0' + big_endian(static_cast<uint32_t>(message.size())) + message;
  };
  work.message = framed(read_file(argv[4]));
  if (work.message.size() > WINDOW) throw std::runtime_error("a request of more than 64 KiB");
  for (int index = 6; index < argc; ++index) work.expected.push_back(framed(read_file(argv[index])));
  work.log = std::fopen(argv[5], "wb");
  if (work.log == nullptr) throw std::runtime_error("cannot write the log");
  std::vector<std::unique_ptr<Connection>> connections;
  for (int index = 0; index < std::stoi(argv[2]); ++index) {
    connections.push_back(std::make_unique<Connection>(work, std::stoi(argv[1])));
  }
  const auto between = Nanoseconds(static_cast<int64_t>(1e9 / std::stod(argv[3])));
  ::prctl(PR_SET_TIMERSLACK, 1);  // else the kernel wakes us up to 50 µs late
  std::vector<pollfd> waiting(connections.size() + 1);
  bool told = false, stopping = false;
  size_t turn = 0;
  Clock::time_point due = Clock::now(), stopped{};
  while (!stopping || std::any_of(connections.begin(), connections.end(),
                                  [](const auto& each) { return !each->idle(); })) {
    waiting[0] = {stopping ? -1 : STDIN_FILENO, POLLIN, 0};
    for (size_t index = 0; index < connections.size(); ++index) {
      waiting[index + 1] = {connections[index]->socket(), connections[index]->events(), 0};
    }
    const int64_t to_next = std::max<int64_t>(0, Nanoseconds(due - Clock::now()).count());
    const int64_t left = stopping ? 1'000'000'000 : to_next;
    const timespec until{left / 1'000'000'000, left % 1'000'000'000};
    ::ppoll(waiting.data(), waiting.size(), &until, nullptr);
    char ignored[256];
    if (waiting[0].revents && ::read(STDIN_FILENO, ignored, sizeof ignored) <= 0) {
      stopping = true;
      stopped = Clock::now();
    }
    if (stopping && Clock::now() > stopped + PATIENCE) {
      for (const auto& each : connections) each->give_up();
    }
    for (; !stopping && due <= Clock::now(); due += between) {
      connections[turn++ % connections.size()]->ask(due);
    }
    for (size_t index = 0; index < connections.size(); ++index) {
      if (waiting[index + 1].revents && connections[index]->socket() >= 0) {
        connections[index]->go_on();
      }
    }
    if (!told && std::ftell(work.log) > 0) {
      std::cout << "sending" << std::endl;
      told = true;
    }
  }
  std::fclose(work.log);
  std::cout << "{\"failed\": " << work.failed << ", \"unexpected\": " << work.unexpected
            << ", \"complaint\": \"" << work.complaint << "\"}" << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
}
