// The data plane under everything at once: senders, cancellers, swaps, bad requests, shutdown.
//
// Built with sanitizers by `make test-native`; arguments: seconds, seed. Exit code 0: every call was
// finished exactly once, with the numbers of the version that its reply names, and nothing leaked.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "plane.h"

using namespace trimtab;

namespace {

std::atomic<int64_t> alive{0};
std::atomic<int64_t> finished[17];
std::atomic<int64_t> wrong{0};

void check(bool good, const char* what) {
  if (good) return;
  if (wrong.fetch_add(1) < 10) std::fprintf(stderr, "wrong: %s\n", what);
}

void varint(std::string& to, uint64_t value) {
  for (; value >= 128; value >>= 7) to.push_back(static_cast<char>((value & 127) | 128));
  to.push_back(static_cast<char>(value));
}

void field(std::string& to, int number, const std::string& payload) {
  varint(to, number << 3 | 2);
  varint(to, payload.size());
  to += payload;
}

// `rows` rows of `width` times `value`; every fourth names a width that makes a group of its own.
std::string request_of(float value, int64_t rows, int64_t width, const std::string& version,
                       const std::string& id) {
  std::string shape, input, message;
  varint(shape, rows);
  varint(shape, width);
  field(input, 1, "x");
  field(input, 2, "FP32");
  field(input, 3, shape);
  field(message, 1, "m");
  if (!version.empty()) field(message, 2, version);
  if (!id.empty()) field(message, 3, id);
  field(message, 5, input);
  std::string raw(rows * width * sizeof(float), '\0');
  for (int64_t index = 0; index < rows * width; ++index) {
    std::memcpy(&raw[index * sizeof(float)], &value, sizeof value);
  }
  field(message, 7, raw);
  return message;
}

class StressCall final : public Call {
 public:
  // `value` of a damaged request is not known.
  StressCall(std::string bytes, float its_value, bool damaged)
      : value_(its_value), damaged_(damaged), bytes_(std::move(bytes)) {
    request = reinterpret_cast<const uint8_t*>(bytes_.data());
    request_size = bytes_.size();
    alive.fetch_add(1);
  }
  ~StressCall() override {
    check(times_.load() == 1, "a call was not finished exactly once");
    alive.fetch_sub(1);
  }

  uint8_t* reserve(size_t size) noexcept override {
    reply_.resize(size);
    return reinterpret_cast<uint8_t*>(&reply_[0]);
  }

  void drop_request() noexcept override { std::string().swap(bytes_); }

  void finish(const Status& status) noexcept override {
    times_.fetch_add(1);
    finished[static_cast<int>(status.code)].fetch_add(1);
    if (!status.ok() || damaged_) return;
    // Field 1 is "m", field 2 the version; the numbers are the reply's end.
    float number;
    std::memcpy(&number, reply_.data() + reply_.size() - sizeof number, sizeof number);
    const int version = reply_[5] - '0';
    check(number == value_ * static_cast<float>(version), "another version's numbers");
  }

 private:
  const float value_;
  const bool damaged_;
  std::string bytes_;
  std::string reply_;
  std::atomic<int> times_{0};
};

std::shared_ptr<ServedVersion> version_of(int64_t number) {
  Schema schema;
  schema.model = "m";
  schema.version = number;
  schema.inputs.push_back({"x", Datatype::FP32, {-1, -1}});
  schema.outputs.push_back({"y", Datatype::FP32});
  schema.batchable = true;
  schema.max_request_rows = 100;
  VersionLimits limits;
  limits.max_batch_rows = 64;
  limits.max_queue_rows = 500;
  return std::make_shared<ServedVersion>(schema, limits);
}

// Computes y = x * version; fails some batches whole, and single calls of them.
void execute(std::shared_ptr<ServedVersion> version, unsigned seed) {
  std::mt19937 random(seed);
  const auto compute = [&](Batch& batch) {
    const Batch::Gathered& input = batch.inputs()[0];
    std::vector<float> numbers(input.size / sizeof(float));
    std::memcpy(numbers.data(), input.data.get(), input.size);
    for (float& number : numbers) number *= static_cast<float>(version->schema.version);
    Computed output;
    output.data = reinterpret_cast<const uint8_t*>(numbers.data());
    output.size = input.size;
    output.shape = input.shape;
    check(batch.reply({output}, {0}).empty(), "a reply that could not be divided");
    if (!batch.keep({output}) || version->kept.rows > 100) version->kept = Kept();
    check(batch.observed().rows.size() == batch.observed().id_ends.size(), "observed");
  };
  bool closed = false;
  while (!closed) {
    const std::chrono::nanoseconds idle(random() % 2 ? 0 : 100'000);
    std::unique_ptr<Batch> batch = Batch::take(version, random() % 8 != 0, idle, closed);
    if (batch == nullptr) continue;
    batch->running();
    if (random() % 16 == 0) {
      for (std::unique_ptr<Batch>& single : batch->singles()) {
        if (random() % 4 == 0) {
          single->fail({Code::internal, "unlucky"});
        } else {
          compute(*single);
        }
      }
    } else {
      compute(*batch);
    }
    if (random() % 64 == 0) version->counts();
  }
}

struct Served {
  std::shared_ptr<ServedVersion> version;
  std::thread executor;

  explicit Served(int64_t number, unsigned seed)
      : version(version_of(number)), executor(execute, version, seed) {}
  void retire(bool drain) {
    version->queue.close();
    if (!drain) version->refuse_waiting({Code::unavailable, "retired"});
    executor.join();
  }
};

void send(DataPlane& plane, std::atomic<bool>& stop, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<StressCall*> held;
  while (!stop.load()) {
    const float value = static_cast<float>(random() % 1000);
    std::string bytes =
        request_of(value, 1 + random() % 5, random() % 4 ? 3 : 1 + random() % 7,
                   random() % 8 ? "" : std::to_string(1 + random() % 9),
                   random() % 2 ? "" : std::string(1 + random() % 70, 'a') + std::to_string(random()));
    const bool damaged = random() % 16 == 0;
    if (damaged && random() % 2) bytes.resize(1 + random() % bytes.size());
    if (damaged) bytes[random() % bytes.size()] ^= 1 << random() % 8;
    auto* call = new StressCall(std::move(bytes), value, damaged);
    if (random() % 8 == 0) {
      call->deadline = Clock::now() + std::chrono::microseconds(random() % 500);
    }
    if (random() % 16 == 0) plane.cancel(call);
    plane.submit(call);
    held.push_back(call);
    if (held.size() > 64) {
      for (StressCall* each : held) {
        if (random() % 4 == 0) plane.cancel(each);
        each->release();
      }
      held.clear();
    }
  }
  for (StressCall* each : held) {
    plane.cancel(each);
    each->release();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 3.0;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  {
    DataPlane plane("stress");
    plane.limit(400, 1 << 20);
    std::mt19937 random(seed);
    std::atomic<bool> stop{false};
    std::vector<std::thread> senders;
    for (unsigned index = 0; index < 4; ++index) {
      senders.emplace_back(send, std::ref(plane), std::ref(stop), seed * 100 + index);
    }
    const Clock::time_point ends =
        Clock::now() + std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6));
    std::unique_ptr<Served> current;
    int64_t number = 0;
    int swaps = 0;
    while (Clock::now() < ends) {
      number = number % 9 + 1;
      auto next = std::make_unique<Served>(number, seed + number);
      Route route;
      route.answers = next->version;
      route.versions[number] = next->version;
      // The version on its way out is a challenger for a while, as long as its queue takes calls.
      if (current && random() % 2) {
        route.challenger = current->version;
        route.share = random() % (SHARES + 1);
      }
      if (current) route.versions[current->version->schema.version] = current->version;
      if (random() % 16 == 0) plane.remove_route("m");
      plane.set_route("m", std::move(route));
      if (current) current->retire(random() % 2 == 0);
      current = std::move(next);
      ++swaps;
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 10));
    }
    plane.refuse({Code::unavailable, "shutting down"});
    stop.store(true);
    for (std::thread& sender : senders) sender.join();
    current->retire(true);
    check(plane.calls_in_flight() == 0, "calls are still counted");
    check(plane.bytes_in_flight() == 0, "bytes are still counted");
    std::printf("%d swaps;", swaps);
  }
  check(alive.load() == 0, "calls were not freed");
  check(finished[0].load() > 0, "nothing was answered");
  for (int code = 0; code < 17; ++code) {
    if (finished[code].load()) std::printf(" code %d: %lld", code, (long long)finished[code].load());
  }
  std::printf("; %lld wrong\n", (long long)wrong.load());
  return wrong.load() == 0 ? 0 : 1;
}
