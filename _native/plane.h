// The data plane: from a request's bytes to the queue of the version that answers it.
//
// Routes say which versions a model has; the lifecycle sets them, one model at a time, and a request reads
// them under a shared lock for the length of one look-up. A version that is retired between the look-up
// and its queue says so, and the request is looked up again: a swap fails nobody.
//
// A route may send a share of the requests that name no version to a challenger. The request's id alone
// decides, so that a client that repeats an id meets the same version again, and a larger share answers
// all that the smaller one did. The challenger's number seeds the hash: the next challenger gets another
// sample of ids than this one.
#pragma once

#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "call.h"
#include "served_version.h"

namespace trimtab {

constexpr uint32_t SHARES = 10'000;

// All that requests need of one model.
struct Route {
  std::shared_ptr<ServedVersion> answers;  // those that name no version; may be null
  Status refusal;                          // why, where it is null
  std::shared_ptr<ServedVersion> challenger;  // instead of `answers`, of some requests; may be null
  uint32_t share = 0;                         // of these: ids whose hash modulo SHARES is below it
  std::map<int64_t, std::shared_ptr<ServedVersion>> versions;
  std::map<int64_t, Status> refusals;  // of versions that are known and do not answer
};

class DataPlane final : public Inference {
 public:
  explicit DataPlane(std::string id_prefix);
  virtual ~DataPlane() = default;

  void submit(Call* call) noexcept override;
  void cancel(Call* call) noexcept override;

  void set_route(const std::string& model, Route route);
  void remove_route(const std::string& model);
  // What is said to requests for a model without a route.
  void set_unknown(Code code, const std::string& suffix);
  // From now on every request is refused so; ok: none is.
  void refuse(Status status);

  void limit(int64_t max_calls, int64_t max_bytes);
  int64_t calls_in_flight() const { return in_flight_.calls.load(); }
  int64_t bytes_in_flight() const { return in_flight_.bytes.load(); }

 private:
  Status admit(Call* call);
  // Mints an id where it needs one to choose and the client has none.
  Status find(const Addressee& addressee, std::string& minted,
              std::shared_ptr<ServedVersion>& version);
  Status enqueue(Call* call, bool& queued);
  std::string mint_id();

  const std::string id_prefix_;
  std::atomic<uint64_t> next_id_{1};
  InFlight in_flight_;

  std::shared_mutex mutex_;  // protects everything below
  std::map<std::string, Route, std::less<>> routes_;
  Status unknown_{Code::not_found, " is not found"};
  Status refusing_;
};

}  // namespace trimtab
