// One loaded version as requests meet it: its schema, its queue, what it has done, and its batches.
//
// Frontends' threads put calls in through the data plane; one executor thread takes batches out, has
// the model computed and gives the outputs to `Batch::reply` or `Batch::fail`. Statistics are added up
// once per batch under a lock of their own, so that a reader sees whole batches only.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "call.h"
#include "infer_message.h"
#include "request_queue.h"

namespace trimtab {

// Requests under way in the whole process, and their bytes. Limits of 0: none.
struct InFlight {
  std::atomic<int64_t> calls{0};
  std::atomic<int64_t> bytes{0};
  int64_t max_calls = 0;
  int64_t max_bytes = 0;
};

// Finishes a call, forgets that it is in flight and gives the reference back.
void finish(Call* call, const Status& status) noexcept;

struct VersionLimits {
  int64_t max_batch_rows = 1;
  int64_t max_queue_rows = 1;
  std::chrono::nanoseconds linger{0};
  int64_t default_timeout_us = 0;  // that every request has at most; 0: none
};

struct Total {
  uint64_t count = 0;
  uint64_t ns = 0;

  void add(uint64_t times, uint64_t each_ns) {
    count += times;
    ns += times * each_ns;
  }
};

struct RunTotals {
  Total input, infer, output;
};

constexpr int64_t LATENCY_BOUNDS_US[] = {100,    200,    500,     1'000,   2'000,   5'000,     10'000,
                                         20'000, 50'000, 100'000, 200'000, 500'000, 1'000'000, 5'000'000};
constexpr int64_t BATCH_BOUNDS[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
constexpr size_t LATENCY_BUCKETS = std::size(LATENCY_BOUNDS_US) + 1;
constexpr size_t BATCH_BUCKETS = std::size(BATCH_BOUNDS) + 1;

struct VersionCounts {
  int64_t last_inference_ms = 0;
  uint64_t rows = 0;
  uint64_t runs = 0;
  Total success, fail, queue;
  RunTotals compute;    // per answered request
  uint64_t failed = 0;  // computed with an error
  uint64_t latency_us[LATENCY_BUCKETS] = {};
  uint64_t batch_rows[BATCH_BUCKETS] = {};
  std::map<int64_t, RunTotals> runs_by_size;  // the first sizes that occurred
  QueueCounts queued;
};

// Of the calls that were answered, in order: for whoever observes them.
struct ObservedCalls {
  std::string ids;
  std::vector<int32_t> id_ends;
  std::vector<int64_t> rows;
  std::vector<int64_t> event_time_ms;  // -1: the request has none
  std::vector<int64_t> received_ms;
  int64_t latest_event_time_ms = -1;

  void append(const ObservedCalls& other);
};

// The rows of small batches, put together until they are worth a look: observing a batch has a price
// that does not depend on its rows. The executor's thread alone.
struct Kept {
  struct Tensor {
    std::vector<uint8_t> data;
    std::vector<int64_t> shape;
  };
  int64_t rows = 0;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  ObservedCalls calls;
};

class ServedVersion {
 public:
  ServedVersion(Schema schema, VersionLimits limits);
  ~ServedVersion();

  const Schema schema;
  const VersionLimits limits;
  const std::string prefix;  // of every reply
  RequestQueue queue;

  // All counts of one instant.
  VersionCounts counts() const;

  // Tells those who waited too long, and counts them.
  void expire(const std::vector<Call*>& calls);
  // Tells everybody who waits.
  void refuse_waiting(const Status& status);

  Kept kept;

 private:
  friend class Batch;

  mutable std::mutex mutex_;  // protects counts_
  VersionCounts counts_;
};

// What an executor computed for one output: C-contiguous memory, or the wire form of BYTES.
struct Computed {
  const uint8_t* data = nullptr;
  size_t size = 0;
  std::vector<int64_t> shape;
};

// Calls that are computed together. One thread, the executor's.
class Batch {
 public:
  // One input: aligned memory, shared with the arrays that are views of it.
  struct Gathered {
    std::shared_ptr<uint8_t> data;
    size_t size = 0;
    std::vector<int64_t> shape;
  };

  // Blocks; nullptr with `idle` 0: the version is closed and empty, else maybe only idle for so long.
  static std::unique_ptr<Batch> take(const std::shared_ptr<ServedVersion>& version, bool together,
                                     std::chrono::nanoseconds idle, bool& closed);
  ~Batch();

  const ServedVersion& version() const { return *version_; }
  int64_t rows() const { return rows_; }
  size_t size() const { return calls_.size(); }
  bool open() const { return !calls_.empty(); }

  // Gathered when the batch was taken.
  const std::vector<Gathered>& inputs() const { return inputs_; }

  // Whether every call wants all outputs; else which are wanted at all, ascending.
  bool wants_all() const;
  std::vector<uint32_t> wanted() const;

  // The model is about to be run; after `reply` its time is counted from here.
  void running() { infer_began_ = Clock::now(); }

  // Sends each call its rows. `outputs` in the order of `indexes` (the schema's). Empty on success;
  // else why the outputs cannot be given back, and nothing was sent.
  std::string reply(const std::vector<Computed>& outputs, const std::vector<uint32_t>& indexes);

  // Tells every call.
  void fail(const Status& status);

  // This batch's calls, one by one, each with inputs of its own; this batch is empty afterwards.
  // Calls that have gone meanwhile are finished and left out.
  std::vector<std::unique_ptr<Batch>> singles();

  const ObservedCalls& observed() const { return observed_; }

  // Adds an answered batch, with all of its outputs, to what its version keeps; false: what is kept has
  // other trailing shapes.
  bool keep(const std::vector<Computed>& outputs);

 private:
  Batch(std::shared_ptr<ServedVersion> version, std::vector<Call*> calls);
  bool gather();

  std::shared_ptr<ServedVersion> version_;
  std::vector<Call*> calls_;  // empty once they were finished
  int64_t rows_ = 0;
  std::vector<Gathered> inputs_;
  std::vector<std::vector<size_t>> sizes_;  // per input: the bytes of each call
  Clock::time_point began_;
  Clock::time_point infer_began_;
  uint64_t input_ns_ = 0;
  ObservedCalls observed_;
};

}  // namespace trimtab
