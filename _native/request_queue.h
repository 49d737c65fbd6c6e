// The queue between the threads that receive requests and the thread that runs one version.
//
// Many threads put and remove, one thread takes. What waits is bounded in rows, not in requests. A take
// returns calls that may share a run of the model, the longest waiting first: with no linger an idle
// executor gets at once what is there, and batches form by themselves from what arrives while it runs.
// A lone request is never held back for company unless the operator asked for it.
//
// A call that is removed (its client has gone) leaves at once, whatever its place: the queue is two
// doubly linked lists through the calls themselves, one by arrival and one per group of calls whose
// inputs have equal trailing shapes. So nothing is allocated per call, and no dead entries pile up.
//
// The queue never finishes a call: whoever takes one out owes it that, outside of the lock.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "call.h"

namespace trimtab {

// Calls that can share a run, in order of arrival.
struct QueueGroup {
  std::string key;
  Call* first = nullptr;
  Call* last = nullptr;
};

enum class Put { queued, full, closed, cancelled };

enum class Take { calls, idle, closed };

struct QueueCounts {
  int64_t waiting_requests = 0;
  int64_t waiting_rows = 0;
  uint64_t rejected = 0;   // found the queue full
  uint64_t cancelled = 0;  // given up before they ran
  uint64_t expired = 0;    // out of time before they ran
};

class RequestQueue {
 public:
  RequestQueue(int64_t max_rows, std::chrono::nanoseconds linger);

  // Queued: the queue has the caller's reference from now on. A call larger than the whole queue is
  // taken when nothing else waits.
  Put put(Call* call);

  // True: the call waited, and its reference is the caller's again.
  bool remove(Call* call);

  // Blocks until there is something to do. Calls: `calls` share a run, the first whatever its size, then
  // those of its group that fit into `max_rows`; `expired` are past their time. Idle: nothing came for so
  // long (0: that is never said). Closed: and empty.
  Take take(int64_t max_rows, std::chrono::nanoseconds idle, std::vector<Call*>& calls,
            std::vector<Call*>& expired);

  // No more calls; what waits can still be taken.
  void close();

  // Everything that waits.
  std::vector<Call*> empty();

  QueueCounts counts() const;

 private:
  QueueGroup* group_of(const Call& call);
  void link(Call* call, QueueGroup* group);
  void unlink(Call* call);
  void gather(int64_t max_rows, std::vector<Call*>& calls, std::vector<Call*>& expired);

  const int64_t max_rows_;
  const std::chrono::nanoseconds linger_;

  mutable std::mutex mutex_;  // protects everything below, and the links of calls that wait
  std::condition_variable changed_;
  Call* first_ = nullptr;
  Call* last_ = nullptr;
  std::unordered_map<std::string, std::unique_ptr<QueueGroup>> groups_;
  QueueGroup* recent_ = nullptr;  // the group that was put into last; kept though it be empty
  QueueCounts counts_;
  bool idle_ = false;  // somebody waits in take and was not woken yet
  bool closed_ = false;
};

}  // namespace trimtab
