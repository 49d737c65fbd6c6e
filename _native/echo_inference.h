// An Inference that answers each request with the request's own bytes, for tests of a transport and for
// measuring one alone.
#pragma once

#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "call.h"

namespace trimtab {

class EchoInference final : public Inference {
 public:
  struct Counts {
    int64_t submitted = 0;
    int64_t cancelled = 0;  // finished because they were cancelled
    int64_t waiting = 0;
  };

  EchoInference() : timer_([this] { run(); }) {}
  ~EchoInference() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    timer_.join();
    settle_all(false, {Code::unavailable, "the echo has ended"});
  }

  // How requests are answered from now on; a delay below 0: not until `release_held`.
  void behave(double delay_s, Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    delay_s_ = delay_s;
    status_ = std::move(status);
  }

  void submit(Call* call) noexcept override {
    call->retain();
    Status status;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++counts_.submitted;
      status = status_;
      if (call->cancelled.load()) {
        ++counts_.cancelled;
        status = cancelled;
      } else if (delay_s_ != 0.0) {
        const bool held = delay_s_ < 0.0;
        const auto due = held ? Clock::time_point::max()
                              : Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(delay_s_));
        waiting_.emplace(due, std::pair(call, std::move(status)));
        if (!held) changed_.notify_one();
        return;
      }
    }
    settle(call, status);
  }

  void cancel(Call* call) noexcept override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      call->cancelled.store(true);
      auto found = waiting_.begin();
      while (found != waiting_.end() && found->second.first != call) ++found;
      if (found == waiting_.end()) return;
      waiting_.erase(found);
      ++counts_.cancelled;
    }
    settle(call, cancelled);
  }

  // Answers what is held, the first or the last request first.
  void release_held(bool last_first) { settle_all(last_first, {}); }

  Counts counts() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Counts counts = counts_;
    counts.waiting = static_cast<int64_t>(waiting_.size());
    return counts;
  }

 private:
  inline static const Status cancelled{Code::cancelled, "the request was cancelled"};
  using Waiting = std::multimap<Clock::time_point, std::pair<Call*, Status>>;

  static void settle(Call* call, const Status& status) {
    Status outcome = status;
    if (outcome.ok()) {
      uint8_t* reply = call->reserve(call->request_size);
      if (reply == nullptr) {
        outcome = {Code::resource_exhausted, "no memory for the reply"};
      } else {
        std::memcpy(reply, call->request, call->request_size);
      }
    }
    call->drop_request();
    call->finish(outcome);
    call->release();
  }

  void settle_all(bool last_first, const Status& status) {
    std::vector<std::pair<Call*, Status>> calls;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto& [due, call] : waiting_) calls.push_back(std::move(call));
      waiting_.clear();
    }
    if (last_first) calls = {calls.rbegin(), calls.rend()};
    for (auto& [call, own] : calls) settle(call, status.ok() ? own : status);
  }

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!ending_) {
      const auto first = waiting_.begin();
      if (first == waiting_.end() || first->first == Clock::time_point::max()) {
        changed_.wait(lock);
      } else if (first->first > Clock::now()) {
        const Clock::time_point due = first->first;  // it may be taken out meanwhile
        changed_.wait_until(lock, due);
      } else {
        auto [call, status] = std::move(first->second);
        waiting_.erase(first);
        lock.unlock();
        settle(call, status);
        lock.lock();
      }
    }
  }

  std::mutex mutex_;  // protects everything below
  std::condition_variable changed_;
  Waiting waiting_;  // by when they are answered, one reference each
  Counts counts_;
  double delay_s_ = 0.0;
  Status status_;
  bool ending_ = false;
  std::thread timer_;
};

}  // namespace trimtab
