// What all calls of one frontend share: limits, the count of those that live, and who must hear that the
// server stops. Every call holds a reference, so that it outlives the last of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "event_queue.h"
#include "frontend.h"
#include "grpc_headers.h"

namespace trimtab {

inline constexpr const char* shutting_down =
    "GRPC server is shutting down and has stopped accepting new requests.";

// A call that acts by itself when the server stops: a stream of predictions, a call of Python's.
class Draining {
 public:
  virtual void drain() noexcept = 0;    // no new requests; may end at once
  virtual void abandon() noexcept = 0;  // nobody will finish it any more: end it
  virtual void hold() noexcept = 0;     // a reference
  virtual void let_go() noexcept = 0;

 protected:
  ~Draining() = default;
};

class CallRegistry {
 public:
  CallRegistry(Inference* inference, size_t max_message_bytes)
      : inference(inference), max_message_bytes(max_message_bytes) {}

  Inference* const inference;
  const size_t max_message_bytes;
  EventQueue events;

  bool refusing() const noexcept { return refusing_.load(std::memory_order_relaxed); }
  int64_t open() const noexcept { return open_.load(); }

  // One pair per call; a call has left when nothing of it is used any more.
  void enter() noexcept { open_.fetch_add(1, std::memory_order_relaxed); }
  void leave() noexcept {
    if (open_.fetch_sub(1) == 1 && refusing_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      changed_.notify_all();
    }
  }

  // From `add` to `remove` a call is told of the stop. Removed while it still has gRPC's reference.
  void add(Draining* call) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      draining_.insert(call);
    }
    if (refusing_.load()) call->drain();  // it was not there when the others were told
    if (abandoned_.load()) call->abandon();
  }
  void remove(Draining* call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    draining_.erase(call);
  }

  void refuse() {
    refusing_.store(true);
    for_each([](Draining* call) { call->drain(); });
  }
  void abandon() {
    abandoned_.store(true);
    for_each([](Draining* call) { call->abandon(); });
  }

  // Waits until `done` or the time that `until` tells, both of which may look at what `change` changes.
  template <class Done, class Until>
  bool wait(Done done, Until until) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!done()) {
      const Clock::time_point end = until();
      if (end == Clock::time_point::max()) {
        changed_.wait(lock);
      } else if (changed_.wait_until(lock, end) == std::cv_status::timeout && Clock::now() >= until()) {
        return done();
      }
    }
    return true;
  }
  template <class Change>
  void change(Change action) {
    const std::lock_guard<std::mutex> lock(mutex_);
    action();
    changed_.notify_all();
  }

 private:
  template <class Action>
  void for_each(Action action) {
    std::vector<Draining*> calls;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      calls.assign(draining_.begin(), draining_.end());
      for (Draining* call : calls) call->hold();
    }
    for (Draining* call : calls) {
      action(call);
      call->let_go();
    }
  }

  std::atomic<int64_t> open_{0};
  std::atomic<bool> refusing_{false};
  std::atomic<bool> abandoned_{false};
  std::mutex mutex_;  // protects draining_, and what `change` changes
  std::condition_variable changed_;
  std::set<Draining*> draining_;
};

// --- small things that all calls do

inline Clock::time_point deadline_of(gpr_timespec deadline) {
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) return Clock::time_point::max();
  deadline = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);  // Clock, on Linux
  return Clock::time_point(std::chrono::seconds(deadline.tv_sec) + std::chrono::nanoseconds(deadline.tv_nsec));
}

// The bytes of a message, which a Slice keeps alive; copied only where they came in several pieces.
inline grpc::Slice in_one_piece(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  if (!buffer.TrySingleSlice(&slice).ok() && !buffer.DumpToSingleSlice(&slice).ok()) return {};
  return slice;
}

// An error's text may quote what a client sent. gRPC makes up to three bytes of one when it
// percent-encodes, and clients drop a reply whose trailing metadata exceed 8 KiB.
inline std::string shown(const std::string& text) {
  constexpr size_t limit = 1000;
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
  return text.substr(0, end) + "…";
}

inline grpc::Status to_grpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code), shown(status.text)};
}

inline Status too_large(size_t size, size_t limit) {  // in gRPC's own words
  return {Code::resource_exhausted,
          "Sent message larger than max (" + std::to_string(size) + " vs. " + std::to_string(limit) + ")"};
}

}  // namespace trimtab
