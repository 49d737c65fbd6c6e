#include "plane.h"

#include <new>

#include "id_hash.h"

namespace trimtab {

namespace {

constexpr int LOOKUPS = 100;  // swaps that one request may meet; each takes a load, so never
constexpr size_t SHOWN = 200;  // bytes of a client's string that a message quotes

// A client's string for a message: cut where it is long, at a character's border.
std::string shown(std::string_view text) {
  if (text.size() <= SHOWN) return std::string(text);
  size_t end = SHOWN;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "…";
}

// A version as a request writes it; false: it is none.
bool version_number(std::string_view text, int64_t& number) {
  if (text.empty() || text.size() > 18) return false;
  number = 0;
  for (char digit : text) {
    if (digit < '0' || digit > '9') return false;
    number = number * 10 + (digit - '0');
  }
  return number > 0;
}

std::string unknown_model(std::string_view model) {
  return "Request for unknown model: '" + shown(model) + "'";
}

}  // namespace

DataPlane::DataPlane(std::string id_prefix) : id_prefix_(std::move(id_prefix)) {}

void DataPlane::submit(Call* call) noexcept {
  call->retain();  // given back by finish
  bool queued = false;
  Status status;
  try {
    status = admit(call);
    if (status.ok()) status = enqueue(call, queued);
  } catch (const std::bad_alloc&) {
    status = {Code::resource_exhausted, "no memory"};  // short enough to need none itself
  }
  if (!queued) finish(call, status);
}

void DataPlane::cancel(Call* call) noexcept {
  call->cancelled.store(true);
  ServedVersion* version = call->version.load();
  if (version != nullptr && version->queue.remove(call)) {
    finish(call, {Code::cancelled, "cancelled"});
  }
}

Status DataPlane::admit(Call* call) {
  call->received = Clock::now();
  call->received_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
  call->expires = call->deadline;
  call->in_flight = &in_flight_;
  call->counted_bytes = call->request_size;
  const int64_t size = static_cast<int64_t>(call->request_size);
  const int64_t calls = in_flight_.calls.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t bytes = in_flight_.bytes.fetch_add(size, std::memory_order_relaxed) + size;
  if (in_flight_.max_calls && calls > in_flight_.max_calls) {
    return {Code::unavailable, "more than " + std::to_string(in_flight_.max_calls) +
                                   " requests are under way (max_in_flight)"};
  }
  // One that is larger than the limit is let through alone.
  if (in_flight_.max_bytes && bytes > in_flight_.max_bytes && bytes > size) {
    return {Code::unavailable, "requests of more than " + std::to_string(in_flight_.max_bytes) +
                                   " bytes are under way (max_in_flight_bytes)"};
  }
  return {};
}

Status DataPlane::find(const Addressee& addressee, std::string& minted,
                       std::shared_ptr<ServedVersion>& version) {
  std::shared_lock<std::shared_mutex> lock(mutex_);
  if (!refusing_.ok()) return refusing_;
  const auto found = routes_.find(addressee.model);
  if (found == routes_.end()) {
    return {unknown_.code, unknown_model(addressee.model) + unknown_.text};
  }
  const Route& route = found->second;
  if (addressee.version.empty()) {
    version = route.answers;
    if (version == nullptr) return route.refusal;
    if (route.challenger != nullptr) {
      if (addressee.id.empty() && minted.empty()) minted = mint_id();
      const std::string_view id = addressee.id.empty() ? minted : addressee.id;
      const uint64_t seed = static_cast<uint64_t>(route.challenger->schema.version);
      if (id_hash(id, seed) % SHARES < route.share) version = route.challenger;
    }
    return {};
  }
  int64_t number;
  if (!version_number(addressee.version, number)) {
    return {Code::invalid_argument, "failed to get model version from specified version string '" +
                                        shown(addressee.version) +
                                        "' (version should be an integral value > 0)"};
  }
  const auto served = route.versions.find(number);
  if (served != route.versions.end()) {
    version = served->second;
    return {};
  }
  const auto refused = route.refusals.find(number);
  if (refused != route.refusals.end()) return refused->second;
  return {Code::not_found,
          unknown_model(addressee.model) + " version " + std::to_string(number) + " is not found"};
}

Status DataPlane::enqueue(Call* call, bool& queued) {
  Addressee addressee;
  Status status = read_addressee(call->request, call->request_size, addressee);
  if (!status.ok()) return status;
  std::string minted;
  for (int lookup = 0; lookup < LOOKUPS; ++lookup) {
    std::shared_ptr<ServedVersion> version;
    status = find(addressee, minted, version);
    if (!status.ok()) return status;
    call->work = InferRequest();
    status = decode_request(call->request, call->request_size, version->schema, call->work);
    if (!status.ok()) return status;
    if (call->work.id.empty()) call->work.id = minted.empty() ? mint_id() : minted;
    // A request may shorten the model's own timeout and not lengthen it.
    int64_t timeout_us = version->limits.default_timeout_us;
    if (call->work.timeout_us && (timeout_us == 0 || call->work.timeout_us < timeout_us)) {
      timeout_us = call->work.timeout_us;
    }
    call->expires = call->deadline;
    call->expires_by_timeout = false;
    // Longer than this is as good as none, and must not overflow the clock.
    constexpr int64_t YEAR_US = int64_t{365} * 24 * 3600 * 1'000'000;
    if (timeout_us && timeout_us < YEAR_US) {
      const Clock::time_point timeout = call->received + std::chrono::microseconds(timeout_us);
      if (timeout < call->expires) {
        call->expires = timeout;
        call->expires_by_timeout = true;
      }
    }
    call->version.store(version.get());
    call->held.push_back(std::move(version));
    // From here on the call may be finished by another thread at any moment.
    switch (call->held.back()->queue.put(call)) {
      case Put::queued:
        queued = true;
        return {};
      case Put::cancelled:
        return {Code::cancelled, "cancelled"};
      case Put::full:
        return {Code::unavailable, "Exceeds maximum queue size"};
      case Put::closed:
        break;
    }
  }
  return {Code::unavailable, "the model is being replaced over and over"};
}

std::string DataPlane::mint_id() {
  uint64_t number = next_id_.fetch_add(1, std::memory_order_relaxed);
  char digits[16];
  size_t length = 0;
  do {
    digits[length++] = "0123456789abcdef"[number & 15];
    number >>= 4;
  } while (number);
  std::string id;
  id.reserve(id_prefix_.size() + 1 + length);
  id.append(id_prefix_).push_back('-');
  while (length) id.push_back(digits[--length]);
  return id;
}

void DataPlane::set_route(const std::string& model, Route route) {
  std::unique_lock<std::shared_mutex> lock(mutex_);
  std::swap(routes_[model], route);
  lock.unlock();  // the old route's versions may be the last of theirs
}

void DataPlane::remove_route(const std::string& model) {
  std::unique_lock<std::shared_mutex> lock(mutex_);
  const auto found = routes_.find(model);
  if (found == routes_.end()) return;
  Route gone = std::move(found->second);
  routes_.erase(found);
  lock.unlock();
}

void DataPlane::set_unknown(Code code, const std::string& suffix) {
  std::unique_lock<std::shared_mutex> lock(mutex_);
  unknown_ = {code, suffix};
}

void DataPlane::refuse(Status status) {
  std::unique_lock<std::shared_mutex> lock(mutex_);
  refusing_ = std::move(status);
}

void DataPlane::limit(int64_t max_calls, int64_t max_bytes) {
  in_flight_.max_calls = max_calls;
  in_flight_.max_bytes = max_bytes;
}

}  // namespace trimtab
