// ModelInfer and ModelStreamInfer as calls of the data plane, over raw messages.
//
// Ownership of a UnaryInfer: gRPC has the reference it is made with and gives it back in OnDone, which
// gRPC calls after `Finish` and after every other reaction. The data plane has one from `submit` to the
// end of its one `finish`, and may therefore be the last to let go. `response_` is gRPC's and lives
// until OnDone, hence during `finish`.
//
// Ownership of an InferStream: gRPC has a reference until OnDone, each of its StreamedInfer has one for
// as long as it lives. A StreamedInfer belongs to the stream's window from its message to the moment
// its reply has left (or the stream has ended), and to the data plane as above. gRPC's part of a stream
// may be used only before `Finish`, and is: whoever sets `finished_` under the lock calls `Finish`, and
// `Finish` waits for the write under way, so that a thread that starts a write cannot come too late.
// Reads are started in reactions only, whose end OnDone waits for.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "call_registry.h"

namespace trimtab {

class UnaryInfer final : public grpc::ServerUnaryReactor, public Call {
 public:
  // What gRPC calls for each request; the reactor that answers it.
  static grpc::ServerUnaryReactor* begin(
      const std::shared_ptr<CallRegistry>& registry, const grpc::CallbackServerContext& context,
      const grpc::ByteBuffer& request, grpc::ByteBuffer* response);

  uint8_t* reserve(size_t size) noexcept override;
  void finish(const Status& status) noexcept override;
  void drop_request() noexcept override { request_ = grpc::Slice(); }

  void OnCancel() override { registry_->inference->cancel(this); }
  void OnDone() override { release(); }

 private:
  UnaryInfer(std::shared_ptr<CallRegistry> registry, grpc::ByteBuffer* response)
      : registry_(std::move(registry)), response_(response) {
    registry_->enter();
  }
  ~UnaryInfer() override { registry_->leave(); }

  const std::shared_ptr<CallRegistry> registry_;
  grpc::ByteBuffer* const response_;
  grpc::Slice request_;
  grpc::Slice reply_;
  size_t refused_size_ = 0;  // of a reply beyond the limit
};

class InferStream;

// One request of a stream. Its reply is a ModelStreamInferResponse.
class StreamedInfer final : public Call {
 public:
  StreamedInfer(InferStream* stream, const grpc::ByteBuffer& message);

  uint8_t* reserve(size_t size) noexcept override;
  void finish(const Status& status) noexcept override;
  void drop_request() noexcept override { request_ = grpc::Slice(); }

 private:
  friend class InferStream;

  ~StreamedInfer() override;

  InferStream* const stream_;
  grpc::Slice request_;
  std::string id_;  // the client's
  grpc::Slice reserved_;
  size_t refused_size_ = 0;

  grpc::ByteBuffer reply_;  // written by `finish`, then read by the stream
  Status status_;           // likewise
  bool done_ = false;       // under the stream's lock
};

class InferStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                          private Draining {
 public:
  // Requests that are under way or whose reply has not left: beyond it the stream is not read, so that
  // a client which never reads holds no more than so many.
  static constexpr size_t window = 64;

  static grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* begin(
      const std::shared_ptr<CallRegistry>& registry, const grpc::CallbackServerContext& context);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  friend class StreamedInfer;

  InferStream(std::shared_ptr<CallRegistry> registry, const grpc::CallbackServerContext& context);
  ~InferStream() override { registry_->leave(); }

  void drain() noexcept override;
  void abandon() noexcept override {}
  void hold() noexcept override { references_.fetch_add(1, std::memory_order_relaxed); }
  void let_go() noexcept override {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  void settled(StreamedInfer* call);
  enum class From { reaction, elsewhere };
  void advance(From from);

  const std::shared_ptr<CallRegistry> registry_;
  const Clock::time_point deadline_;
  const bool ends_on_error_;  // the client asked for real statuses
  std::atomic<int> references_{1};
  grpc::ByteBuffer incoming_;  // the read's while reading_

  std::mutex mutex_;                  // protects everything below
  std::deque<StreamedInfer*> calls_;  // in the order of their requests; one reference each
  bool reading_ = true;               // from the start
  bool writing_ = false;              // the reply of the first call
  bool half_closed_ = false;          // the client sends no more
  bool gone_ = false;                 // the client hears no more
  bool draining_ = false;             // the server stops
  bool finished_ = false;             // `Finish` has been or is being called
};

}  // namespace trimtab
