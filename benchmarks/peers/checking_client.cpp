// A load generator that reads every answer: so many requests in flight on each of some connections,
// the same one over and over, and each reply must be, byte for byte, one of those that are expected.
//
//   checking_client PORT CONNECTIONS STREAMS REQUEST LOG REPLY...
//
// PORT is one of 127.0.0.1; REQUEST and REPLYs are files of gRPC messages; LOG takes 16 bytes an answer: when
// it came (ns of the monotonic clock), µs that it took, which reply it was (from 0; -1: an error, -2:
// none of them). It says "sending" once the first answer came, sends until its input ends, waits for
// what is under way and prints how many answers of each kind there were, as JSON.
//
// It speaks as much of HTTP/2 as that needs (RFC 9113): what a server says in headers and trailers it
// does not read, since whatever is not the expected message is an error. gRPC's own client costs
// several times as much as the server that is to be loaded.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

constexpr int32_t ERROR = -1, UNEXPECTED = -2;
constexpr uint8_t DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7,
                  WINDOW_UPDATE = 8;
constexpr uint8_t END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8;
constexpr int64_t WINDOW = 65'535;  // that each side of a connection begins with
constexpr size_t FRAME_HEAD = 9, MESSAGE_HEAD = 5;

struct Answer {
  int64_t at_ns;
  int32_t took_us;
  int32_t reply;
};
static_assert(sizeof(Answer) == 16);

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
  std::vector<int64_t> replies;
  int64_t failed = 0, unexpected = 0;
  std::string complaint;
  bool stopping = false;
};

class Connection {
 public:
  Connection(Work& work, int port, int streams) : work_(work) {
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
    out_ = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, "");
    for (int stream = 0; stream < streams; ++stream) send();
    flush();
  }
  ~Connection() { ::close(socket_); }

  int socket() const { return socket_; }
  bool idle() const { return open_.empty() && waiting_ == 0; }

  // There is something to read.
  void receive() {
    char part[1 << 16];
    const ssize_t size = ::recv(socket_, part, sizeof part, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return lost("the connection was closed");
    in_.append(part, static_cast<size_t>(size));
    size_t at = 0;
    while (in_.size() - at >= FRAME_HEAD) {
      const uint32_t length = number_at(&in_[at]) >> 8;
      if (in_.size() - at < FRAME_HEAD + length) break;
      take(static_cast<uint8_t>(in_[at + 3]), static_cast<uint8_t>(in_[at + 4]),
           number_at(&in_[at + 5]) & 0x7fffffff, &in_[at + FRAME_HEAD], length);
      at += FRAME_HEAD + length;
    }
    in_.erase(0, at);
    while (waiting_ > 0 && window_ >= static_cast<int64_t>(work_.message.size())) {
      --waiting_;
      send();
    }
    flush();
  }

 private:
  struct Open {
    Clock::time_point sent;
    std::string reply;
  };

  void send() {
    if (window_ < static_cast<int64_t>(work_.message.size())) {
      ++waiting_;  // until the server lets us
      return;
    }
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
    open_[next_] = {Clock::now(), {}};
    out_ += frame(HEADERS, END_HEADERS, next_, headers);
    out_ += frame(DATA, END_STREAM, next_, work_.message);
    next_ += 2;
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
      const auto found = open_.find(stream);
      if (flags & PADDED) throw std::runtime_error("a padded frame");
      if (found != open_.end()) found->second.reply.append(payload, length);
    }
    if ((type == DATA || type == HEADERS) && (flags & END_STREAM)) answered(stream, "");
  }

  void answered(uint32_t stream, const std::string& complaint) {
    const auto found = open_.find(stream);
    if (found == open_.end()) return;
    const Clock::time_point now = Clock::now();
    Answer answer{
        std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count(),
        static_cast<int32_t>(
            std::chrono::duration_cast<std::chrono::microseconds>(now - found->second.sent).count()),
        UNEXPECTED};
    const std::string& reply = found->second.reply;
    for (size_t index = 0; index < work_.expected.size(); ++index) {
      if (reply == work_.expected[index]) answer.reply = static_cast<int32_t>(index);
    }
    if (reply.empty()) {
      answer.reply = ERROR;
      if (work_.failed++ == 0) work_.complaint = complaint.empty() ? "no message" : complaint;
    } else if (answer.reply == UNEXPECTED) {
      ++work_.unexpected;
    } else {
      ++work_.replies[static_cast<size_t>(answer.reply)];
    }
    std::fwrite(&answer, sizeof answer, 1, work_.log);
    open_.erase(found);
    if (!work_.stopping && !lost_) send();
  }

  void lost(const std::string& complaint) {
    lost_ = true;
    waiting_ = 0;
    while (!open_.empty()) answered(open_.begin()->first, complaint);
  }

  // Blocks where the socket is full: the server reads on, whatever we read.
  void flush() {
    for (size_t at = 0; at < out_.size() && !lost_;) {
      const ssize_t size = ::send(socket_, &out_[at], out_.size() - at, MSG_NOSIGNAL);
      if (size > 0) at += static_cast<size_t>(size);
      if (size < 0 && errno != EINTR) lost("the connection was reset");
    }
    out_.clear();
  }

  Work& work_;
  int socket_;
  std::string in_, out_;
  std::unordered_map<uint32_t, Open> open_;
  uint32_t next_ = 1;
  int waiting_ = 0;
  int64_t window_ = WINDOW;
  int64_t received_ = 0;
  bool lost_ = false;
};

int run(int argc, char** argv) {
  if (argc < 7) throw std::runtime_error("PORT CONNECTIONS STREAMS REQUEST LOG REPLY...");
  Work work;
  const auto framed = [](const std::string& message) {
    return '\0' + big_endian(static_cast<uint32_t>(message.size())) + message;
  };
  work.message = framed(read_file(argv[4]));
  if (work.message.size() > WINDOW) throw std::runtime_error("a request of more than 64 KiB");
  for (int index = 6; index < argc; ++index) work.expected.push_back(framed(read_file(argv[index])));
  work.replies.resize(work.expected.size());
  work.log = std::fopen(argv[5], "wb");
  if (work.log == nullptr) throw std::runtime_error("cannot write the log");
  std::vector<std::unique_ptr<Connection>> connections;
  std::vector<pollfd> waiting{{STDIN_FILENO, POLLIN, 0}};
  for (int index = 0; index < std::stoi(argv[2]); ++index) {
    connections.push_back(
        std::make_unique<Connection>(work, std::stoi(argv[1]), std::stoi(argv[3])));
    waiting.push_back({connections.back()->socket(), POLLIN, 0});
  }
  bool told = false;
  for (bool busy = true; busy;) {
    ::poll(waiting.data(), waiting.size(), -1);
    char ignored[256];
    if (waiting[0].revents && ::read(STDIN_FILENO, ignored, sizeof ignored) <= 0) {
      work.stopping = true;
      waiting[0].fd = -1;
    }
    busy = false;
    for (size_t index = 0; index < connections.size(); ++index) {
      if (waiting[index + 1].revents) connections[index]->receive();
      if (connections[index]->idle()) {
        waiting[index + 1].fd = -1;  // stopped, or lost
      } else {
        busy = true;
      }
    }
    if (!told && std::ftell(work.log) > 0) {
      std::cout << "sending" << std::endl;
      told = true;
    }
  }
  std::fclose(work.log);
  std::cout << "{\"replies\": [";
  for (size_t index = 0; index < work.replies.size(); ++index) {
    std::cout << (index ? ", " : "") << work.replies[index];
  }
  std::cout << "], \"failed\": " << work.failed << ", \"unexpected\": " << work.unexpected
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
