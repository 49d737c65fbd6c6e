#include "request_queue.h"

#include <cstring>

namespace trimtab {

namespace {

// Whether two calls with the same number of inputs may share a run: every dimension but the first is
// equal. The names and datatypes are, since both were checked against one schema.
void append_key(const Call& call, std::string& key) {
  for (const InputData& input : call.work.inputs) {
    const size_t bytes = input.shape.size() > 1 ? (input.shape.size() - 1) * sizeof(int64_t) : 0;
    if (bytes) key.append(reinterpret_cast<const char*>(input.shape.data() + 1), bytes);
  }
}

// Ranks are the schema's, so equal bytes mean equal shapes.
bool has_key(const Call& call, const std::string& key) {
  size_t at = 0;
  for (const InputData& input : call.work.inputs) {
    const size_t bytes = input.shape.size() > 1 ? (input.shape.size() - 1) * sizeof(int64_t) : 0;
    if (bytes > key.size() - at) return false;
    if (bytes && std::memcmp(key.data() + at, input.shape.data() + 1, bytes) != 0) return false;
    at += bytes;
  }
  return at == key.size();
}

}  // namespace

RequestQueue::RequestQueue(int64_t max_rows, std::chrono::nanoseconds linger)
    : max_rows_(max_rows), linger_(linger) {}

Put RequestQueue::put(Call* call) {
  bool wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return Put::closed;
    if (call->cancelled.load()) {
      ++counts_.cancelled;
      return Put::cancelled;
    }
    if (counts_.waiting_rows && counts_.waiting_rows + call->work.rows > max_rows_) {
      ++counts_.rejected;
      return Put::full;
    }
    link(call, group_of(*call));
    wake = idle_;
    idle_ = false;
  }
  if (wake) changed_.notify_one();
  return Put::queued;
}

bool RequestQueue::remove(Call* call) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (call->group == nullptr) return false;
  unlink(call);
  ++counts_.cancelled;
  return true;
}

Take RequestQueue::take(int64_t max_rows, std::chrono::nanoseconds idle, std::vector<Call*>& calls,
                        std::vector<Call*>& expired) {
  std::unique_lock<std::mutex> lock(mutex_);
  const Clock::time_point idle_at =
      idle.count() ? Clock::now() + idle : Clock::time_point::max();
  for (;;) {
    if (first_ != nullptr) {
      const Clock::time_point run_at = first_->received + linger_;
      if (closed_ || linger_.count() == 0 || counts_.waiting_rows >= max_rows ||
          Clock::now() >= run_at) {
        gather(max_rows, calls, expired);
        return Take::calls;
      }
      idle_ = true;
      changed_.wait_until(lock, run_at);
    } else if (closed_) {
      return Take::closed;
    } else if (idle.count() && Clock::now() >= idle_at) {
      return Take::idle;
    } else {
      idle_ = true;
      if (idle.count()) {
        changed_.wait_until(lock, idle_at);
      } else {
        changed_.wait(lock);
      }
    }
    idle_ = false;
  }
}

void RequestQueue::gather(int64_t max_rows, std::vector<Call*>& calls, std::vector<Call*>& expired) {
  const Clock::time_point now = Clock::now();
  int64_t rows = 0;
  Call* call = first_->group->first;
  while (call != nullptr) {
    Call* following = call->next_in_group;
    if (call->expires <= now) {
      unlink(call);
      ++counts_.expired;
      expired.push_back(call);
    } else if (!calls.empty() && rows + call->work.rows > max_rows) {
      break;
    } else {
      rows += call->work.rows;
      unlink(call);
      calls.push_back(call);
    }
    call = following;
  }
}

void RequestQueue::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

std::vector<Call*> RequestQueue::empty() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Call*> calls;
  while (first_ != nullptr) {
    calls.push_back(first_);
    unlink(first_);
  }
  return calls;
}

QueueCounts RequestQueue::counts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

QueueGroup* RequestQueue::group_of(const Call& call) {
  if (recent_ != nullptr && has_key(call, recent_->key)) return recent_;
  std::string key;
  append_key(call, key);
  std::unique_ptr<QueueGroup>& group = groups_[key];
  if (group == nullptr) {
    group = std::make_unique<QueueGroup>();
    group->key = std::move(key);
  }
  QueueGroup* before = recent_;
  recent_ = group.get();
  if (before != nullptr && before->first == nullptr) groups_.erase(std::string(before->key));
  return recent_;
}

void RequestQueue::link(Call* call, QueueGroup* group) {
  call->group = group;
  call->next = nullptr;
  call->previous = last_;
  (last_ == nullptr ? first_ : last_->next) = call;
  last_ = call;
  call->next_in_group = nullptr;
  call->previous_in_group = group->last;
  (group->last == nullptr ? group->first : group->last->next_in_group) = call;
  group->last = call;
  ++counts_.waiting_requests;
  counts_.waiting_rows += call->work.rows;
}

void RequestQueue::unlink(Call* call) {
  QueueGroup* group = call->group;
  call->group = nullptr;
  (call->previous == nullptr ? first_ : call->previous->next) = call->next;
  (call->next == nullptr ? last_ : call->next->previous) = call->previous;
  (call->previous_in_group == nullptr ? group->first : call->previous_in_group->next_in_group) =
      call->next_in_group;
  (call->next_in_group == nullptr ? group->last : call->next_in_group->previous_in_group) =
      call->previous_in_group;
  --counts_.waiting_requests;
  counts_.waiting_rows -= call->work.rows;
  if (group->first == nullptr && group != recent_) groups_.erase(std::string(group->key));
}

}  // namespace trimtab
