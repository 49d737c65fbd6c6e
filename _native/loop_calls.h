// Calls that an asyncio event loop makes and waits for: the portable frontend's way into the data plane.
//
// `finish` may be called by any thread and without Python's lock: it puts the call into a list and makes
// an eventfd readable that the loop watches, once for however many calls finish before the loop looks.
// The loop then takes the list and, with Python's lock, sets the futures.
#pragma once

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include <sys/eventfd.h>
#include <unistd.h>

#include "call.h"

namespace trimtab {

class LoopCall;

class LoopCalls {
 public:
  LoopCalls() : file_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~LoopCalls() {
    if (file_ >= 0) close(file_);
  }

  int file() const { return file_; }

  void push(LoopCall* call) noexcept {
    bool first;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      first = finished_.empty();
      finished_.push_back(call);
    }
    if (first) {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = write(file_, &one, sizeof one);
    }
  }

  // The calls that finished since; their references are the caller's.
  std::vector<LoopCall*> take() {
    uint64_t count;
    [[maybe_unused]] const ssize_t got = read(file_, &count, sizeof count);
    std::vector<LoopCall*> calls;
    std::lock_guard<std::mutex> lock(mutex_);
    calls.swap(finished_);
    return calls;
  }

 private:
  const int file_;
  std::mutex mutex_;
  std::vector<LoopCall*> finished_;
};

// `waiter` is the frontend's own: an object that is told once, by the loop.
class LoopCall final : public Call {
 public:
  LoopCall(std::shared_ptr<LoopCalls> calls, const char* bytes, size_t size, void* its_waiter)
      : waiter(its_waiter), calls_(std::move(calls)), bytes_(bytes, size) {
    request = reinterpret_cast<const uint8_t*>(bytes_.data());
    request_size = size;
  }
  ~LoopCall() override { std::free(reply); }

  uint8_t* reserve(size_t size) noexcept override {
    reply = static_cast<uint8_t*>(std::malloc(size ? size : 1));
    reply_size = size;
    return reply;
  }

  void finish(const Status& its_status) noexcept override {
    status = its_status;
    retain();  // the list's, given back by the loop
    calls_->push(this);
  }

  void drop_request() noexcept override { std::string().swap(bytes_); }

  void* waiter;
  Status status;
  uint8_t* reply = nullptr;
  size_t reply_size = 0;

 private:
  std::shared_ptr<LoopCalls> calls_;
  std::string bytes_;
};

}  // namespace trimtab
