// Events from gRPC's threads to the one thread of Python's event loop.
//
// An eventfd wakes the loop once for all events that came since it looked last: a busy server costs it
// one system call for many events. Any thread pushes; one drains.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <system_error>
#include <vector>

#include "frontend.h"

namespace trimtab {

class EventQueue {
 public:
  EventQueue() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  ~EventQueue() {
    close();
    ::close(fd_);
  }
  EventQueue(const EventQueue&) = delete;
  EventQueue& operator=(const EventQueue&) = delete;

  int fd() const noexcept { return fd_; }

  void push(Event::Kind kind, GenericCall* call) noexcept {
    call->retain();
    bool wake = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!closed_) {
        wake = events_.empty();
        events_.push_back({kind, call});
        call = nullptr;
      }
    }
    if (call != nullptr) call->release();
    if (wake) {
      const uint64_t one = 1;
      (void)!::write(fd_, &one, sizeof one);  // fails only where it is readable already
    }
  }

  void drain(std::vector<Event>& events) noexcept {
    uint64_t count;
    (void)!::read(fd_, &count, sizeof count);  // before the look: what comes after it wakes again
    events.clear();
    const std::lock_guard<std::mutex> lock(mutex_);
    events.swap(events_);
  }

  // Drops what is there and what is still to come.
  void close() noexcept {
    std::vector<Event> dropped;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      dropped.swap(events_);
    }
    for (const Event& event : dropped) event.of->release();
  }

 private:
  const int fd_;
  std::mutex mutex_;  // protects the two below
  std::vector<Event> events_;
  bool closed_ = false;
};

}  // namespace trimtab
