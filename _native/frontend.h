// The native frontend: a gRPC server on libgrpc++ whose predictions never meet Python.
//
//     ModelInfer, ModelStreamInfer → Inference (grpc_infer.h), on gRPC's threads
//     every other method           → events → Python's loop → GenericCall (grpc_generic.h)
//
// Only libgrpc++'s own headers and raw bytes are used: no code is generated, and a change of protobuf
// cannot break it. No header of gRPC is included here, for the module of Python's side.
//
// Threads: `start`, `stop` and the destructor block and may be called by any thread. `drain` and the
// methods of a GenericCall belong to one thread at a time, that of Python's event loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "call.h"

namespace trimtab {

enum class MethodKind : int { unary = 0, stream = 1, bidi = 2 };

struct Method {
  std::string name;  // "/package.Service/Method"
  MethodKind kind;
};

enum class Compression : int { none = 0, gzip = 1, deflate = 2 };

struct FrontendOptions {
  int max_message_bytes = 64 << 20;
  Compression compression = Compression::none;  // of replies, for clients that understand it
  std::string tls_cert;                         // PEM, as the next two; empty: no TLS
  std::string tls_key;
  std::string tls_client_ca;  // not empty: a client must show a certificate that it has signed
  int keepalive_ms = 7'200'000;
  int keepalive_timeout_ms = 20'000;
  int max_concurrent_streams = 0;  // per connection; 0: any number
};

// One call that Python answers. References are counted; all methods may be called after the call has
// ended and then do nothing.
class GenericCall {
 public:
  virtual uint64_t id() const noexcept = 0;
  virtual const std::string& method() const noexcept = 0;
  virtual std::string peer() const = 0;
  virtual double deadline() const noexcept = 0;  // in seconds of Clock; negative: none

  // The message that `Event::message` or `Event::call` told of, until `drop_message` or `read`.
  virtual const uint8_t* message(size_t& size) const noexcept = 0;
  virtual void drop_message() noexcept = 0;

  // Asks for the next message; answered by one Event::message or Event::half_close. Bidi calls only, and
  // not again before the answer.
  virtual void read() noexcept = 0;
  virtual void send_initial_metadata() noexcept = 0;
  // Copies and sends one message; answered by one Event::written, or not at all once it returned false.
  // Not again before the answer.
  virtual bool write(const uint8_t* data, size_t size) noexcept = 0;
  // The only message, and the end with status ok.
  virtual void reply(const uint8_t* data, size_t size) noexcept = 0;
  // The end. Every call needs one, those too that are cancelled; the first one counts.
  virtual void finish(Code code, const std::string& text) noexcept = 0;

  virtual void retain() noexcept = 0;
  virtual void release() noexcept = 0;

 protected:
  virtual ~GenericCall() = default;
};

struct Event {
  enum Kind : int {
    call = 0,        // a new call; unary and stream: its message has been read
    message = 1,     // what `read` asked for
    half_close = 2,  // likewise: there are no more
    written = 3,     // what `write` sent has left
    broken = 4,      // likewise: it will not arrive
    gone = 5,        // the client has left or its deadline has passed; `finish` is still owed
    done = 6,        // nothing more will be heard of the call
  };

  Kind kind;
  GenericCall* of;  // one reference, the taker's
};

class CallRegistry;
class GrpcServer;

// A server on one address. The `inference` and what it rests on must live until `stop` returned true.
class Frontend {
 public:
  // Without an inference every method is Python's.
  Frontend(std::string address, FrontendOptions options, std::vector<Method> methods, Inference* inference);
  ~Frontend();

  // Listens; the port, or 0 where the address or the certificate cannot be had.
  int start();

  // New calls are refused from now on. Does not block.
  void refuse();

  // Refuses new calls, lets those under way finish for `grace`, cancels the rest and waits for their end.
  // False: a call has not ended within `patience` after that; its memory is left to it. A second call
  // may shorten the grace of the first, and both return at the end. Events must be drained meanwhile.
  bool stop(std::chrono::milliseconds grace, std::chrono::milliseconds patience);

  // A descriptor that is readable when there are events, and what has happened since.
  int event_fd() const;
  void drain(std::vector<Event>& events);

  int64_t open_calls() const;

 private:
  std::shared_ptr<CallRegistry> registry_;
  std::shared_ptr<GrpcServer> server_;
};

// Of the library that is linked.
std::string grpc_version();

}  // namespace trimtab
