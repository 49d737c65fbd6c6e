// The headers of libgrpc++ that the frontend needs, which have moved between releases.
#pragma once

#include <grpc/compression.h>
#include <grpc/grpc.h>
#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>

#if __has_include(<grpcpp/generic/callback_generic_service.h>)
#include <grpcpp/generic/callback_generic_service.h>
#else
#include <grpcpp/generic/async_generic_service.h>
#endif
#if __has_include(<grpcpp/impl/server_callback_handlers.h>)
#include <grpcpp/impl/server_callback_handlers.h>
#else
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#endif
