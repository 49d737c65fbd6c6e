// A bare gRPC server in C++, callback API: reads a ModelInferRequest and answers with the same
// tensors. What a native gRPC server costs before it does anything; no server that parses and writes
// these messages with the same library can be cheaper. It prints its port and runs until killed.
#include <grpcpp/grpcpp.h>

#include <iostream>
#include <memory>

#include "infer.grpc.pb.h"

class Echo final : public inference::GRPCInferenceService::CallbackService {
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* reply) override {
    reply->set_model_name(request->model_name());
    reply->set_model_version("1");
    reply->set_id(request->id());
    for (const auto& input : request->inputs()) {
      auto* output = reply->add_outputs();
      output->set_name(input.name());
      output->set_datatype(input.datatype());
      *output->mutable_shape() = input.shape();
    }
    *reply->mutable_raw_output_contents() = request->raw_input_contents();
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

int main() {
  Echo service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) return 1;
  std::cout << port << std::endl;
  server->Wait();
}
