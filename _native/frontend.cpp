#include "frontend.h"

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "call_registry.h"
#include "grpc_generic.h"
#include "grpc_headers.h"
#include "grpc_infer.h"

namespace trimtab {

namespace {

using Message = grpc::ByteBuffer;

constexpr const char* model_infer = "/inference.GRPCInferenceService/ModelInfer";
constexpr const char* model_stream_infer = "/inference.GRPCInferenceService/ModelStreamInfer";

// For this long every new call is refused before the server closes: gRPC has read calls ahead, and
// their clients shall be told rather than cut off.
constexpr std::chrono::milliseconds refusing_time(200);

// The two methods that the data plane answers, registered as generated code registers raw ones.
class InferenceMethods final : public grpc::Service {
 public:
  explicit InferenceMethods(const std::shared_ptr<CallRegistry>& registry) {
    using grpc::internal::RpcMethod;
    using grpc::internal::RpcServiceMethod;
    AddMethod(new RpcServiceMethod(model_infer, RpcMethod::NORMAL_RPC, nullptr));
    MarkMethodRawCallback(
        0, new grpc::internal::CallbackUnaryHandler<Message, Message>(
               [registry](grpc::CallbackServerContext* context, const Message* request, Message* reply) {
                 return UnaryInfer::begin(registry, *context, *request, reply);
               }));
    AddMethod(new RpcServiceMethod(model_stream_infer, RpcMethod::BIDI_STREAMING, nullptr));
    MarkMethodRawCallback(
        1, new grpc::internal::CallbackBidiHandler<Message, Message>(
               [registry](grpc::CallbackServerContext* context) {
                 return InferStream::begin(registry, *context);
               }));
  }
};

class OtherMethods final : public grpc::CallbackGenericService {
 public:
  OtherMethods(std::shared_ptr<CallRegistry> registry, const std::vector<Method>& methods)
      : registry_(std::move(registry)) {
    for (const Method& method : methods) kinds_[method.name] = method.kind;
  }

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    if (registry_->refusing()) return refuse_generic({Code::unavailable, shutting_down});
    const auto found = kinds_.find(context->method());
    if (found == kinds_.end()) return refuse_generic({Code::unimplemented, "Method not found!"});
    return new GenericReactor(registry_, *context, found->second);
  }

 private:
  const std::shared_ptr<CallRegistry> registry_;
  std::map<std::string, MethodKind> kinds_;
};

std::shared_ptr<grpc::ServerCredentials> credentials_of(const FrontendOptions& options) {
  if (options.tls_cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions tls(
      options.tls_client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                    : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  tls.pem_key_cert_pairs.push_back({options.tls_key, options.tls_cert});
  tls.pem_root_certs = options.tls_client_ca;
  return grpc::SslServerCredentials(tls);
}

}  // namespace

// gRPC's server and its end. The thread that shuts it down keeps it alive.
class GrpcServer {
 public:
  GrpcServer(
      std::string address, FrontendOptions options, std::vector<Method> methods,
      std::shared_ptr<CallRegistry> registry)
      : address_(std::move(address)),
        options_(std::move(options)),
        registry_(std::move(registry)),
        inference_methods_(registry_),
        other_methods_(registry_, methods) {}

  int start() {
    // Once and for ever: as the last of what uses gRPC goes it waits up to 10 s for its own poller.
    static const bool is_kept = (grpc_init(), true);
    (void)is_kept;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(options_.max_message_bytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server must fail loudly
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, options_.keepalive_ms);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options_.keepalive_timeout_ms);
    if (options_.max_concurrent_streams > 0) {
      builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options_.max_concurrent_streams);
      // Of newer releases: it counts calls that have ended for the client, and would refuse the next one.
      builder.AddChannelArgument("grpc.http.overload_protection", 0);
    }
    // By level, since a level is matched with what the client accepts, and an algorithm is not. The
    // lowest is gzip where the client has it, the highest deflate.
    if (options_.compression == Compression::gzip) {
      builder.SetDefaultCompressionLevel(GRPC_COMPRESS_LEVEL_LOW);
    } else if (options_.compression == Compression::deflate) {
      builder.SetDefaultCompressionLevel(GRPC_COMPRESS_LEVEL_HIGH);
    }
    int port = 0;
    builder.AddListeningPort(address_, credentials_of(options_), &port);
    if (registry_->inference != nullptr) builder.RegisterService(&inference_methods_);
    builder.RegisterCallbackGenericService(&other_methods_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return 0;
    return port;
  }

  static bool stop(
      const std::shared_ptr<GrpcServer>& self, std::chrono::milliseconds grace,
      std::chrono::milliseconds patience) {
    if (self->server_ == nullptr) return true;  // never started
    CallRegistry& registry = *self->registry_;
    const Clock::time_point ends = Clock::now() + grace;
    bool first = false;
    registry.change([&] {
      first = !self->stopping_;
      if (first || ends < self->grace_ends_) self->grace_ends_ = ends;
      self->stopping_ = true;
    });
    std::thread closing;
    if (first) {
      registry.refuse();
      std::this_thread::sleep_for(std::min(grace, refusing_time));
      registry.wait([&] { return registry.open() == 0; }, [&] { return self->grace_ends_; });
      closing = std::thread([self] { self->close(); });
    }
    const bool stopped = registry.wait(
        [&] { return self->stopped_; }, [&] { return std::max(self->grace_ends_, ends) + patience; });
    if (closing.joinable()) {
      if (stopped) {
        closing.join();
      } else {
        closing.detach();
      }
    }
    return stopped;
  }

 private:
  // Waits for the last call without a limit, hence on a thread that can be left alone.
  void close() {
    server_->Shutdown(std::chrono::system_clock::now());
    registry_->wait([&] { return registry_->open() == 0; }, [] { return Clock::time_point::max(); });
    server_->Wait();
    registry_->change([&] { stopped_ = true; });
  }

  const std::string address_;
  const FrontendOptions options_;
  const std::shared_ptr<CallRegistry> registry_;
  InferenceMethods inference_methods_;  // these outlive the server, which uses them
  OtherMethods other_methods_;
  std::unique_ptr<grpc::Server> server_;

  // Changed by the registry's `change` alone.
  Clock::time_point grace_ends_{};
  bool stopping_ = false;
  bool stopped_ = false;
};

Frontend::Frontend(
    std::string address, FrontendOptions options, std::vector<Method> methods, Inference* inference)
    : registry_(std::make_shared<CallRegistry>(
          inference, static_cast<size_t>(options.max_message_bytes))),
      server_(std::make_shared<GrpcServer>(
          std::move(address), std::move(options), std::move(methods), registry_)) {}

Frontend::~Frontend() {
  registry_->events.close();
  registry_->abandon();
  stop(std::chrono::milliseconds(0), std::chrono::seconds(5));
}

int Frontend::start() { return server_->start(); }

void Frontend::refuse() { registry_->refuse(); }

bool Frontend::stop(std::chrono::milliseconds grace, std::chrono::milliseconds patience) {
  return GrpcServer::stop(server_, grace, patience);
}

int Frontend::event_fd() const { return registry_->events.fd(); }

void Frontend::drain(std::vector<Event>& events) { registry_->events.drain(events); }

int64_t Frontend::open_calls() const { return registry_->open(); }

std::string grpc_version() { return grpc::Version(); }

}  // namespace trimtab
