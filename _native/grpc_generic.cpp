#include "grpc_generic.h"

#include <utility>

namespace trimtab {

namespace {

std::atomic<uint64_t> next_id{1};

class Refused final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Refused(const Status& status) { Finish(to_grpc(status)); }
  void OnDone() override { delete this; }
};

grpc::ByteBuffer copy_of(const uint8_t* data, size_t size) {
  const grpc::Slice slice(data, size);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* refuse_generic(const Status& status) {
  return new Refused(status);
}

GenericReactor::GenericReactor(
    std::shared_ptr<CallRegistry> registry, const grpc::GenericCallbackServerContext& context,
    MethodKind kind)
    : registry_(std::move(registry)),
      id_(next_id.fetch_add(1, std::memory_order_relaxed)),
      method_(context.method()),
      peer_(context.peer()),
      deadline_(deadline_of(context.raw_deadline())),
      kind_(kind) {
  registry_->enter();
  registry_->add(this);
  if (kind_ == MethodKind::bidi) {
    announce();
  } else {
    StartRead(&incoming_);
  }
}

double GenericReactor::deadline() const noexcept {
  if (deadline_ == Clock::time_point::max()) return -1.0;
  return std::chrono::duration<double>(deadline_.time_since_epoch()).count();
}

const uint8_t* GenericReactor::message(size_t& size) const noexcept {
  size = message_.size();
  return message_.begin();
}

// --- from Python's thread

bool GenericReactor::may_act() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !finished_;
}

void GenericReactor::read() noexcept {
  drop_message();
  if (may_act()) StartRead(&incoming_);
}

void GenericReactor::send_initial_metadata() noexcept {
  if (begun_ || !may_act()) return;
  begun_ = true;
  StartSendInitialMetadata();
}

bool GenericReactor::write(const uint8_t* data, size_t size) noexcept {
  if (size > registry_->max_message_bytes) {
    end(too_large(size, registry_->max_message_bytes));
    return false;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || writing_) return false;
    writing_ = true;
  }
  begun_ = true;
  outgoing_ = copy_of(data, size);
  StartWrite(&outgoing_);
  return true;
}

void GenericReactor::reply(const uint8_t* data, size_t size) noexcept {
  if (size > registry_->max_message_bytes) return end(too_large(size, registry_->max_message_bytes));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || writing_) return;
    finished_ = true;
  }
  outgoing_ = copy_of(data, size);
  StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
}

void GenericReactor::finish(Code code, const std::string& text) noexcept { end({code, text}); }

void GenericReactor::end(const Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    finished_ = true;
    if (writing_) {
      ending_ = status;
      return;
    }
  }
  Finish(to_grpc(status));
}

// --- from gRPC's threads

// Unless the client left before: then nobody needs to know.
void GenericReactor::announce() {
  bool tell;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tell = announced_ = !gone_;
  }
  if (tell) {
    registry_->events.push(Event::call, this);
  } else {
    end({Code::cancelled, "the client has left"});
  }
}

void GenericReactor::OnReadDone(bool ok) {
  if (ok) message_ = in_one_piece(incoming_);
  incoming_.Clear();
  if (kind_ == MethodKind::bidi) {
    registry_->events.push(ok ? Event::message : Event::half_close, this);
  } else if (ok) {
    announce();
  } else {
    end({Code::unimplemented, "the call has no request message"});
  }
}

void GenericReactor::OnWriteDone(bool ok) {
  outgoing_.Clear();
  std::optional<Status> ending;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    ending.swap(ending_);
  }
  if (ending) {
    Finish(to_grpc(*ending));
  } else {
    registry_->events.push(ok ? Event::written : Event::broken, this);
  }
}

void GenericReactor::OnCancel() {
  bool tell;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    tell = announced_;
  }
  if (tell) registry_->events.push(Event::gone, this);
}

void GenericReactor::OnDone() {
  registry_->remove(this);
  bool tell;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tell = announced_;
  }
  if (tell) registry_->events.push(Event::done, this);
  registry_->leave();
  release();
}

}  // namespace trimtab
