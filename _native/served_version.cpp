#include "served_version.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace trimtab {

namespace {

constexpr size_t ALIGNMENT = 64;
constexpr size_t MAX_SIZES = 512;  // different numbers of rows whose runs are told apart

uint64_t ns_between(Clock::time_point from, Clock::time_point to) {
  return to <= from ? 0
                    : std::chrono::duration_cast<std::chrono::nanoseconds>(to - from).count();
}

template <size_t N>
size_t bucket(const int64_t (&bounds)[N], int64_t value) {
  return std::lower_bound(std::begin(bounds), std::end(bounds), value) - std::begin(bounds);
}

std::shared_ptr<uint8_t> allocate(size_t size) {
  const size_t whole = (std::max<size_t>(size, 1) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return {static_cast<uint8_t*>(std::aligned_alloc(ALIGNMENT, whole)), std::free};
}

uint32_t length_at(const uint8_t* at) {
  uint32_t length;
  std::memcpy(&length, at, sizeof length);
  return length;
}

const Status GONE{Code::cancelled, "the client has gone"};
const Status NO_MEMORY{Code::resource_exhausted, "no memory is left for this request"};

// One reply, written into the frontend's own memory.
Status answer(Call* call, const ServedVersion& version, const OutputData* outputs,
              const uint32_t* indexes, size_t count) {
  const size_t size =
      reply_size(version.schema, version.prefix, call->work, outputs, indexes, count);
  uint8_t* to = call->reserve(size);
  if (to == nullptr) return NO_MEMORY;
  write_reply(to, version.schema, version.prefix, call->work, outputs, indexes, count);
  return {};
}

}  // namespace

void finish(Call* call, const Status& status) noexcept {
  if (call->in_flight != nullptr) {
    call->in_flight->calls.fetch_sub(1, std::memory_order_relaxed);
    call->in_flight->bytes.fetch_sub(static_cast<int64_t>(call->counted_bytes),
                                     std::memory_order_relaxed);
    call->in_flight = nullptr;
  }
  call->finish(status);
  call->release();
}

ServedVersion::ServedVersion(Schema its_schema, VersionLimits its_limits)
    : schema(std::move(its_schema)),
      limits(its_limits),
      prefix(reply_prefix(schema)),
      queue(limits.max_queue_rows, limits.linger) {}

// Every waiting call holds its version, so none is left here.
ServedVersion::~ServedVersion() = default;

VersionCounts ServedVersion::counts() const {
  VersionCounts counts;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    counts = counts_;
  }
  counts.queued = queue.counts();
  return counts;
}

void ServedVersion::expire(const std::vector<Call*>& calls) {
  if (calls.empty()) return;
  const Clock::time_point now = Clock::now();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Call* call : calls) counts_.fail.add(1, ns_between(call->received, now));
  }
  static const Status timeout{Code::unavailable, "Request timeout expired"};
  static const Status deadline{Code::deadline_exceeded,
                               "the deadline passed before the request was run"};
  for (Call* call : calls) finish(call, call->expires_by_timeout ? timeout : deadline);
}

void ServedVersion::refuse_waiting(const Status& status) {
  for (Call* call : queue.empty()) finish(call, status);
}

Batch::Batch(std::shared_ptr<ServedVersion> version, std::vector<Call*> calls)
    : version_(std::move(version)), calls_(std::move(calls)), began_(Clock::now()) {
  for (const Call* call : calls_) rows_ += call->work.rows;
}

Batch::~Batch() {
  // Only a bug leaves calls unanswered; they must not wait for ever all the same.
  for (Call* call : calls_) finish(call, {Code::internal, "the batch was lost"});
}

std::unique_ptr<Batch> Batch::take(const std::shared_ptr<ServedVersion>& version, bool together,
                                   std::chrono::nanoseconds idle, bool& closed) {
  for (;;) {
    std::vector<Call*> calls;
    std::vector<Call*> expired;
    const int64_t max_rows = together ? version->limits.max_batch_rows : 0;
    const Take taken = version->queue.take(max_rows, idle, calls, expired);
    closed = taken == Take::closed;
    if (taken != Take::calls) return nullptr;
    version->expire(expired);
    if (calls.empty()) continue;
    std::unique_ptr<Batch> batch(new Batch(version, std::move(calls)));
    if (batch->gather()) return batch;
    batch->fail(NO_MEMORY);
  }
}

// The one copy of the inputs on their way from the wire into the model.
bool Batch::gather() {
  const size_t inputs = version_->schema.inputs.size();
  inputs_.resize(inputs);
  sizes_.resize(inputs);
  for (size_t index = 0; index < inputs; ++index) {
    Gathered& input = inputs_[index];
    std::vector<size_t>& sizes = sizes_[index];
    sizes.reserve(calls_.size());
    for (const Call* call : calls_) {
      sizes.push_back(call->work.inputs[index].size);
      input.size += sizes.back();
    }
    input.data = allocate(input.size);
    if (input.data == nullptr) return false;
    uint8_t* to = input.data.get();
    for (const Call* call : calls_) {
      const InputData& from = call->work.inputs[index];
      if (from.size) std::memcpy(to, from.data, from.size);
      to += from.size;
    }
    input.shape = calls_.front()->work.inputs[index].shape;
    if (calls_.size() > 1) input.shape[0] = rows_;  // only batchable versions share runs
  }
  for (Call* call : calls_) call->drop_request();
  infer_began_ = Clock::now();
  input_ns_ = ns_between(began_, infer_began_);
  return true;
}

bool Batch::wants_all() const {
  return std::all_of(calls_.begin(), calls_.end(),
                     [](const Call* call) { return call->work.outputs.empty(); });
}

std::vector<uint32_t> Batch::wanted() const {
  std::vector<bool> asked(version_->schema.outputs.size(), wants_all());
  for (const Call* call : calls_) {
    if (call->work.outputs.empty()) asked.assign(asked.size(), true);
    for (uint32_t index : call->work.outputs) asked[index] = true;
  }
  std::vector<uint32_t> indexes;
  for (uint32_t index = 0; index < asked.size(); ++index) {
    if (asked[index]) indexes.push_back(index);
  }
  return indexes;
}

std::string Batch::reply(const std::vector<Computed>& outputs,
                         const std::vector<uint32_t>& indexes) {
  const Clock::time_point computed = Clock::now();
  const Schema& schema = version_->schema;
  const size_t count = outputs.size();
  const bool shared = calls_.size() > 1;

  // Where each output's next row is, and how long a row of numbers is.
  std::vector<const uint8_t*> at(count);
  std::vector<size_t> row_bytes(count, 0);
  std::vector<int64_t> row_elements(count, 1);
  std::vector<std::vector<int64_t>> shapes(count);
  std::vector<size_t> place(schema.outputs.size(), count);  // of each of the schema's outputs
  for (size_t index = 0; index < count; ++index) {
    const Computed& output = outputs[index];
    at[index] = output.data;
    shapes[index] = output.shape;
    place[indexes[index]] = index;
    if (!shared) continue;
    if (output.shape.empty() || output.shape[0] != rows_) {
      return "output '" + schema.outputs[indexes[index]].name + "' of model '" + schema.model +
             "' does not have one row for each of " + std::to_string(rows_);
    }
    for (size_t axis = 1; axis < output.shape.size(); ++axis) {
      row_elements[index] *= output.shape[axis];
    }
    row_bytes[index] = row_elements[index] *
                       element_size(schema.outputs[indexes[index]].datatype);
  }

  observed_.id_ends.reserve(calls_.size());
  observed_.rows.reserve(calls_.size());
  std::vector<Status> statuses(calls_.size());
  std::vector<OutputData> all(count);
  std::vector<OutputData> chosen;
  std::vector<uint32_t> chosen_indexes;
  for (size_t position = 0; position < calls_.size(); ++position) {
    Call* call = calls_[position];
    const int64_t rows = call->work.rows;
    for (size_t index = 0; index < count; ++index) {
      OutputData& output = all[index];
      output.data = at[index];
      if (!shared) {
        output.size = outputs[index].size;
      } else if (schema.outputs[indexes[index]].datatype == Datatype::BYTES) {
        const uint8_t* end = at[index];
        for (int64_t left = rows * row_elements[index]; left > 0; --left) {
          end += sizeof(uint32_t) + length_at(end);
        }
        output.size = end - at[index];
      } else {
        output.size = rows * row_bytes[index];
      }
      at[index] += output.size;
      if (shared) shapes[index][0] = rows;
      output.shape = shapes[index].data();
      output.rank = shapes[index].size();
    }
    if (call->work.outputs.empty()) {
      statuses[position] = answer(call, *version_, all.data(), indexes.data(), count);
    } else {
      chosen.clear();
      chosen_indexes.clear();
      for (uint32_t index : call->work.outputs) {
        chosen.push_back(all[place[index]]);
        chosen_indexes.push_back(index);
      }
      statuses[position] =
          answer(call, *version_, chosen.data(), chosen_indexes.data(), chosen.size());
    }
    observed_.ids += call->work.id;
    observed_.id_ends.push_back(static_cast<int32_t>(observed_.ids.size()));
    observed_.rows.push_back(rows);
    observed_.event_time_ms.push_back(call->work.event_time_ms);
    observed_.latest_event_time_ms =
        std::max(observed_.latest_event_time_ms, call->work.event_time_ms);
    observed_.received_ms.push_back(call->received_ms);
  }

  const Clock::time_point written = Clock::now();
  const uint64_t infer_ns = ns_between(infer_began_, computed);
  const uint64_t output_ns = ns_between(computed, written);
  {
    std::lock_guard<std::mutex> lock(version_->mutex_);
    VersionCounts& counts = version_->counts_;
    const size_t answered = calls_.size();
    counts.last_inference_ms = calls_.back()->received_ms;
    counts.rows += rows_;
    counts.runs += 1;
    counts.compute.input.add(answered, input_ns_);
    counts.compute.infer.add(answered, infer_ns);
    counts.compute.output.add(answered, output_ns);
    counts.batch_rows[bucket(BATCH_BOUNDS, rows_)] += 1;
    for (const Call* call : calls_) {
      const uint64_t took = ns_between(call->received, written);
      counts.success.add(1, took);
      counts.queue.add(1, ns_between(call->received, began_));
      counts.latency_us[bucket(LATENCY_BOUNDS_US, static_cast<int64_t>(took / 1000))] += 1;
    }
    if (counts.runs_by_size.size() < MAX_SIZES || counts.runs_by_size.count(rows_)) {
      RunTotals& run = counts.runs_by_size[rows_];
      run.input.add(1, input_ns_);
      run.infer.add(1, infer_ns);
      run.output.add(1, output_ns);
    }
  }

  std::vector<Call*> calls = std::move(calls_);
  calls_.clear();
  for (size_t position = 0; position < calls.size(); ++position) {
    finish(calls[position], statuses[position]);
  }
  return {};
}

void ObservedCalls::append(const ObservedCalls& other) {
  const int32_t before = static_cast<int32_t>(ids.size());
  ids += other.ids;
  for (int32_t end : other.id_ends) id_ends.push_back(before + end);
  rows.insert(rows.end(), other.rows.begin(), other.rows.end());
  event_time_ms.insert(event_time_ms.end(), other.event_time_ms.begin(), other.event_time_ms.end());
  received_ms.insert(received_ms.end(), other.received_ms.begin(), other.received_ms.end());
  latest_event_time_ms = std::max(latest_event_time_ms, other.latest_event_time_ms);
}

bool Batch::keep(const std::vector<Computed>& outputs) {
  Kept& kept = version_->kept;
  const auto same = [](const std::vector<int64_t>& one, const std::vector<int64_t>& other) {
    return one.size() == other.size() && !one.empty() &&
           std::equal(one.begin() + 1, one.end(), other.begin() + 1);
  };
  if (kept.rows == 0) {
    kept.inputs.assign(inputs_.size(), {});
    kept.outputs.assign(outputs.size(), {});
    for (size_t index = 0; index < inputs_.size(); ++index) {
      kept.inputs[index].shape = inputs_[index].shape;
      if (!kept.inputs[index].shape.empty()) kept.inputs[index].shape[0] = 0;
    }
    for (size_t index = 0; index < outputs.size(); ++index) {
      kept.outputs[index].shape = outputs[index].shape;
      if (!kept.outputs[index].shape.empty()) kept.outputs[index].shape[0] = 0;
    }
  }
  if (kept.outputs.size() != outputs.size()) return false;
  for (size_t index = 0; index < inputs_.size(); ++index) {
    if (!same(kept.inputs[index].shape, inputs_[index].shape)) return false;
  }
  for (size_t index = 0; index < outputs.size(); ++index) {
    if (!same(kept.outputs[index].shape, outputs[index].shape) || outputs[index].shape[0] != rows_) {
      return false;
    }
  }
  for (size_t index = 0; index < inputs_.size(); ++index) {
    const Gathered& input = inputs_[index];
    Kept::Tensor& tensor = kept.inputs[index];
    tensor.data.insert(tensor.data.end(), input.data.get(), input.data.get() + input.size);
    tensor.shape[0] += rows_;
  }
  for (size_t index = 0; index < outputs.size(); ++index) {
    Kept::Tensor& tensor = kept.outputs[index];
    tensor.data.insert(tensor.data.end(), outputs[index].data, outputs[index].data + outputs[index].size);
    tensor.shape[0] += rows_;
  }
  kept.calls.append(observed_);
  kept.rows += rows_;
  return true;
}

void Batch::fail(const Status& status) {
  std::vector<Call*> calls = std::move(calls_);
  calls_.clear();
  const Clock::time_point now = Clock::now();
  {
    std::lock_guard<std::mutex> lock(version_->mutex_);
    for (const Call* call : calls) {
      version_->counts_.fail.add(1, ns_between(call->received, now));
      version_->counts_.failed += 1;
    }
  }
  for (Call* call : calls) finish(call, status);
}

std::vector<std::unique_ptr<Batch>> Batch::singles() {
  std::vector<std::unique_ptr<Batch>> batches;
  std::vector<Call*> calls = std::move(calls_);
  calls_.clear();
  std::vector<size_t> offsets(inputs_.size(), 0);
  for (size_t position = 0; position < calls.size(); ++position) {
    Call* call = calls[position];
    std::unique_ptr<Batch> batch(new Batch(version_, {call}));
    batch->began_ = began_;
    batch->input_ns_ = input_ns_;
    bool whole = true;
    batch->inputs_.resize(inputs_.size());
    for (size_t index = 0; index < inputs_.size(); ++index) {
      Gathered& input = batch->inputs_[index];
      input.size = sizes_[index][position];
      input.shape = call->work.inputs[index].shape;
      input.data = allocate(input.size);
      if (input.data == nullptr) {
        whole = false;
      } else if (input.size) {
        std::memcpy(input.data.get(), inputs_[index].data.get() + offsets[index], input.size);
      }
      offsets[index] += input.size;
    }
    if (call->cancelled.load()) {
      batch->fail(GONE);
    } else if (!whole) {
      batch->fail(NO_MEMORY);
    } else {
      batches.push_back(std::move(batch));
    }
  }
  return batches;
}

}  // namespace trimtab
