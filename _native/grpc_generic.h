// A call that Python answers: what happens to it becomes events, what Python wants becomes operations.
//
// Ownership: gRPC has the reference that a call is made with, until OnDone; every event and every Python
// object of the call has one of its own. gRPC's part may be used only before `Finish`. Python's thread is
// the only one that writes and finishes, so its operations cannot come after its own `Finish`; the two
// others that may finish are the call itself before Python knows of it, and `abandon` once Python has
// gone. A finish while a write is under way waits for the write's end.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "call_registry.h"

namespace trimtab {

class GenericReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                             public GenericCall,
                             private Draining {
 public:
  GenericReactor(
      std::shared_ptr<CallRegistry> registry, const grpc::GenericCallbackServerContext& context,
      MethodKind kind);

  uint64_t id() const noexcept override { return id_; }
  const std::string& method() const noexcept override { return method_; }
  std::string peer() const override { return peer_; }
  double deadline() const noexcept override;

  const uint8_t* message(size_t& size) const noexcept override;
  void drop_message() noexcept override { message_ = grpc::Slice(); }
  void read() noexcept override;
  void send_initial_metadata() noexcept override;
  bool write(const uint8_t* data, size_t size) noexcept override;
  void reply(const uint8_t* data, size_t size) noexcept override;
  void finish(Code code, const std::string& text) noexcept override;

  void retain() noexcept override { references_.fetch_add(1, std::memory_order_relaxed); }
  void release() noexcept override {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  ~GenericReactor() override = default;

  void drain() noexcept override {}
  void abandon() noexcept override { finish(Code::cancelled, shutting_down); }
  void hold() noexcept override { retain(); }
  void let_go() noexcept override { release(); }

  void announce();
  bool may_act();
  void end(const Status& status);

  const std::shared_ptr<CallRegistry> registry_;
  const uint64_t id_;
  const std::string method_;
  const std::string peer_;
  const Clock::time_point deadline_;
  const MethodKind kind_;
  std::atomic<int> references_{1};
  grpc::ByteBuffer incoming_;  // a read's, until its end
  grpc::ByteBuffer outgoing_;  // a write's, until its end
  bool begun_ = false;         // the initial metadata have been sent, or go with a write
  grpc::Slice message_;        // from the end of a read to `drop_message`

  std::mutex mutex_;             // protects everything below
  bool announced_ = false;       // Python knows of it
  bool gone_ = false;            // the client has left
  bool writing_ = false;
  bool finished_ = false;        // `Finish` has been or is being called, or waits for the write
  std::optional<Status> ending_;  // what to finish with once the write has ended
};

// Ends a call at once with that status.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* refuse_generic(const Status& status);

}  // namespace trimtab
