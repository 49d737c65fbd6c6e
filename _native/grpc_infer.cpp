#include "grpc_infer.h"

#include <cstring>
#include <utility>
#include <vector>

#include "protobuf_wire.h"
#include "utf8.h"

namespace trimtab {

namespace {

// Answers a call that is refused before it begins.
class RefusedUnary final : public grpc::ServerUnaryReactor {
 public:
  RefusedUnary() { Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, shutting_down)); }
  void OnDone() override { delete this; }
};

class RefusedStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  RefusedStream() { Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, shutting_down)); }
  void OnDone() override { delete this; }
};

bool wants_real_statuses(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("triton_grpc_error");
  return found != metadata.end() && found->second == "true";
}

uint8_t* memory(grpc::Slice& slice) { return const_cast<uint8_t*>(slice.begin()); }

grpc::ByteBuffer message_of(grpc::Slice& slice) {
  grpc::ByteBuffer message(&slice, 1);  // by reference
  slice = grpc::Slice();
  return message;
}

// The fields of a ModelInferRequest and of a ModelStreamInferResponse that are met here.
constexpr uint32_t request_id = 3;
constexpr uint32_t error_message = 1;
constexpr uint32_t infer_response = 2;
constexpr uint32_t response_id = 3;

// ModelInferResponse.parameters["triton_final_response"] = true: every request has one response. Fields
// come in any order, so it may follow what the data plane writes.
constexpr char final_response[] =
    "\x22\x1b"
    "\x0a\x15"
    "triton_final_response"
    "\x12\x02"
    "\x08\x01";
constexpr size_t final_response_size = sizeof final_response - 1;

std::string id_of(const grpc::Slice& request) {
  wire::Fault fault;
  wire::Reader reader({request.begin(), request.size()}, fault);
  wire::Field field;
  std::string_view id;
  while (reader.next(field)) {
    if (field.tag == wire::tag(request_id, wire::delimited)) {
      id = wire::is_utf8(field.bytes) ? field.bytes.text() : std::string_view();
    }
  }
  return std::string(id);
}

// ModelStreamInferResponse{error_message, infer_response{id}}, so that the client knows which one failed.
grpc::ByteBuffer error_reply(const std::string& text, const std::string& id) {
  const size_t inner = id.empty() ? 0 : wire::field_size(id.size());
  grpc::Slice slice(wire::field_size(text.size()) + wire::field_size(inner));
  wire::Writer writer(memory(slice));
  writer.field(error_message, text);
  writer.lead(infer_response, inner);
  if (!id.empty()) writer.field(response_id, id);
  return message_of(slice);
}

}  // namespace

// --- ModelInfer

grpc::ServerUnaryReactor* UnaryInfer::begin(
    const std::shared_ptr<CallRegistry>& registry, const grpc::CallbackServerContext& context,
    const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
  if (registry->refusing()) return new RefusedUnary;
  auto* call = new UnaryInfer(registry, response);
  call->request_ = in_one_piece(request);
  call->request = call->request_.begin();
  call->request_size = call->request_.size();
  call->deadline = deadline_of(context.raw_deadline());
  registry->inference->submit(call);  // may finish it: gRPC takes that from a reactor it has not seen yet
  return call;
}

uint8_t* UnaryInfer::reserve(size_t size) noexcept {
  if (size > registry_->max_message_bytes) {
    refused_size_ = size;
    return nullptr;
  }
  reply_ = grpc::Slice(size);
  return memory(reply_);
}

void UnaryInfer::finish(const Status& status) noexcept {
  drop_request();
  if (refused_size_ != 0) {
    Finish(to_grpc(too_large(refused_size_, registry_->max_message_bytes)));
  } else if (status.ok()) {
    grpc::ByteBuffer message = message_of(reply_);
    response_->Swap(&message);
    Finish(grpc::Status::OK);
  } else {
    Finish(to_grpc(status));
  }
}

// --- one request of a stream

StreamedInfer::StreamedInfer(InferStream* stream, const grpc::ByteBuffer& message)
    : stream_(stream), request_(in_one_piece(message)), id_(id_of(request_)) {
  stream_->hold();
  request = request_.begin();
  request_size = request_.size();
  deadline = stream_->deadline_;
}

StreamedInfer::~StreamedInfer() { stream_->let_go(); }

uint8_t* StreamedInfer::reserve(size_t size) noexcept {
  const size_t inner = size + final_response_size;
  const size_t whole = wire::field_size(inner);
  if (whole > stream_->registry_->max_message_bytes) {
    refused_size_ = whole;
    return nullptr;
  }
  reserved_ = grpc::Slice(whole);
  wire::Writer(memory(reserved_)).lead(infer_response, inner);
  std::memcpy(memory(reserved_) + whole - final_response_size, final_response, final_response_size);
  return memory(reserved_) + whole - inner;
}

void StreamedInfer::finish(const Status& status) noexcept {
  drop_request();  // the reply may wait for long behind others
  if (refused_size_ != 0) {
    status_ = too_large(refused_size_, stream_->registry_->max_message_bytes);
  } else {
    status_ = status;
  }
  reply_ = status_.ok() ? message_of(reserved_) : error_reply(shown(status_.text), id_);
  stream_->settled(this);
}

// --- ModelStreamInfer

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* InferStream::begin(
    const std::shared_ptr<CallRegistry>& registry, const grpc::CallbackServerContext& context) {
  if (registry->refusing()) return new RefusedStream;
  return new InferStream(registry, context);
}

InferStream::InferStream(
    std::shared_ptr<CallRegistry> registry, const grpc::CallbackServerContext& context)
    : registry_(std::move(registry)),
      deadline_(deadline_of(context.raw_deadline())),
      ends_on_error_(wants_real_statuses(context)) {
  registry_->enter();
  StartSendInitialMetadata();  // a client may wait for it before it sends
  StartRead(&incoming_);
  registry_->add(this);
}

void InferStream::OnReadDone(bool ok) {
  StreamedInfer* call = nullptr;
  if (ok) call = new StreamedInfer(this, incoming_);
  incoming_.Clear();
  bool wanted = false;
  bool refused = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    reading_ = false;
    if (call == nullptr) {
      half_closed_ = true;
    } else if (!finished_ && !gone_) {
      wanted = true;
      refused = draining_;
      calls_.push_back(call);
      call->retain();
    }
  }
  if (refused) {
    call->finish({Code::unavailable, shutting_down});
  } else if (wanted) {
    registry_->inference->submit(call);
  }
  if (call != nullptr) call->release();
  advance(From::reaction);
}

void InferStream::OnWriteDone(bool ok) {
  StreamedInfer* sent;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    if (!ok) gone_ = true;
    sent = calls_.front();
    calls_.pop_front();
  }
  sent->release();
  advance(From::reaction);
}

void InferStream::OnCancel() {
  std::vector<StreamedInfer*> pending;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    for (StreamedInfer* call : calls_) {
      if (call->done_) continue;
      call->retain();
      pending.push_back(call);
    }
  }
  for (StreamedInfer* call : pending) {
    registry_->inference->cancel(call);
    call->release();
  }
  advance(From::reaction);
}

void InferStream::OnDone() {
  registry_->remove(this);
  let_go();
}

void InferStream::drain() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
  }
  advance(From::elsewhere);
}

void InferStream::settled(StreamedInfer* call) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    call->done_ = true;
  }
  advance(From::elsewhere);
}

// Does what can be done next: send the first reply, read on, or end. The caller has a reference.
void InferStream::advance(From from) {
  StreamedInfer* send = nullptr;
  bool read = false;
  bool end = false;
  Status status;
  std::vector<StreamedInfer*> rest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    StreamedInfer* first = calls_.empty() ? nullptr : calls_.front();
    if (writing_) {
      // The end of the write comes back here.
    } else if (gone_) {
      end = true;
      status = {Code::cancelled, "the client has left"};
    } else if (first != nullptr && first->done_) {
      if (ends_on_error_ && !first->status_.ok()) {
        end = true;
        status = first->status_;
      } else {
        writing_ = true;
        send = first;
      }
    } else if (first == nullptr && half_closed_) {
      end = true;
    } else if (first == nullptr && draining_) {
      end = true;
      status = {Code::unavailable, shutting_down};
    }
    if (end) {
      finished_ = true;
      rest.assign(calls_.begin(), calls_.end());
      calls_.clear();
    } else if (from == From::reaction && !reading_ && !half_closed_ && !gone_ && !draining_ &&
               calls_.size() < window) {
      reading_ = true;
      read = true;
    }
  }
  if (send != nullptr) StartWrite(&send->reply_);
  if (read) StartRead(&incoming_);
  if (end) Finish(to_grpc(status));
  for (StreamedInfer* call : rest) {
    registry_->inference->cancel(call);  // no harm where it is done
    call->release();
  }
}

}  // namespace trimtab
