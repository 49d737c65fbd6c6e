// The wire form of inference: ModelInferRequest bytes to an InferRequest, outputs to ModelInferResponse bytes.
//
// Written by hand for this one message: the contents are bytes already, so a request is read where it
// lies and a reply is written where it leaves from, without a protobuf object in between. Everything a
// protobuf parser accepts is accepted with the same meaning (repeated scalars: the last one counts; a
// sub-message that occurs twice is merged; packed and unpacked numbers; unknown fields, groups too, are
// skipped), everything else is refused.
#pragma once

#include <string_view>

#include "call.h"

namespace trimtab {

// The protocol's name of a datatype, and back. False: it is none.
std::string_view datatype_name(Datatype datatype);
bool datatype_of(std::string_view name, Datatype& out);

// What must be known before the schema can be looked up. Views into the message.
struct Addressee {
  std::string_view model;
  std::string_view version;  // as the client wrote it; empty: the server's choice
  std::string_view id;       // any bytes: it is not checked here
};

// Walks the top level of the message. Not ok: it is not a ModelInferRequest.
Status read_addressee(const uint8_t* message, size_t size, Addressee& out);

// Checks the request against the schema completely and fills `out`, whose views point into `message`.
Status decode_request(const uint8_t* message, size_t size, const Schema& schema, InferRequest& out);

// One output as it was computed: all rows of a batch, C-contiguous, or the wire form of BYTES.
struct OutputData {
  const uint8_t* data = nullptr;  // the rows of this reply only
  size_t size = 0;
  const int64_t* shape = nullptr;  // of this reply
  size_t rank = 0;
};

// The fields 1 and 2 of every reply of a version.
std::string reply_prefix(const Schema& schema);

// Bytes of the reply, and the reply itself, written to memory of that size. `outputs` are those that
// the request asks for, in its order, with the schema's index of each in `indexes`.
size_t reply_size(const Schema& schema, const std::string& prefix, const InferRequest& request,
                  const OutputData* outputs, const uint32_t* indexes, size_t count);
void write_reply(uint8_t* to, const Schema& schema, const std::string& prefix, const InferRequest& request,
                 const OutputData* outputs, const uint32_t* indexes, size_t count);

}  // namespace trimtab
