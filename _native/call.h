// One inference request between a frontend and the data plane.
//
// A frontend subclasses `Call`, fills in the request and gives it to `Inference::submit`. From then on
// the data plane owes it exactly one `finish`, which may come before `submit` returns, on any thread,
// and never with a lock of the data plane held. A reply is written in place: `reserve(size)` returns the
// frontend's own memory for it, then `finish` with code ok sends that.
//
// Ownership: calls are counted. The frontend has the reference that a call is made with, the data plane
// takes one of its own from `submit` to the end of `finish`. `request` stays valid until `drop_request`
// or the end of `finish`, whichever comes first.
//
// This header is all that the frontend's extension and the data plane's share: no symbol of one is
// linked into the other, so that the package works where the frontend was not built.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "infer_request.h"

namespace trimtab {

class ServedVersion;
struct InFlight;
struct QueueGroup;

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC, as Python's time.monotonic

// gRPC's numbers.
enum class Code : int {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  resource_exhausted = 8,
  failed_precondition = 9,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
};

struct Status {
  Code code = Code::ok;
  std::string text;

  bool ok() const { return code == Code::ok; }
};

class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // --- filled in by the frontend before `submit`
  const uint8_t* request = nullptr;  // a ModelInferRequest, in one piece
  size_t request_size = 0;
  Clock::time_point deadline = Clock::time_point::max();  // not run after it

  // --- called by the data plane
  virtual uint8_t* reserve(size_t size) noexcept = 0;  // nullptr: no memory
  virtual void finish(const Status& status) noexcept = 0;
  virtual void drop_request() noexcept {}  // nobody reads `request` any more

  void retain() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() noexcept {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  // --- the data plane's own
  InferRequest work;
  Clock::time_point received;
  int64_t received_ms = 0;  // wall clock
  Clock::time_point expires = Clock::time_point::max();
  bool expires_by_timeout = false;  // the request's own `timeout`, not the deadline
  std::atomic<bool> cancelled{false};
  std::atomic<ServedVersion*> version{nullptr};      // where it waits or waited
  std::vector<std::shared_ptr<ServedVersion>> held;  // keeps that alive as long as the call
  InFlight* in_flight = nullptr;                     // where it is counted, with how many bytes
  size_t counted_bytes = 0;
  Call* next = nullptr;                 // neighbours in the queue's order, under the queue's lock
  Call* previous = nullptr;
  Call* next_in_group = nullptr;
  Call* previous_in_group = nullptr;
  QueueGroup* group = nullptr;  // not null: it waits in a queue

 protected:
  virtual ~Call() = default;

 private:
  std::atomic<int> references_{1};
};

// What a frontend gives its calls to; the data plane.
class Inference {
 public:
  // Never blocks for longer than a lock is held.
  virtual void submit(Call* call) noexcept = 0;
  // The client has gone or its deadline has passed; before, during or after `submit`, after `finish` too,
  // any number of times.
  // A call that waits is finished now with code cancelled; one that is computed is finished as ever.
  virtual void cancel(Call* call) noexcept = 0;

 protected:
  ~Inference() = default;
};

}  // namespace trimtab
