"""What an unmodified tritonclient sees of a server. Runs in build/conformance-venv, not in ours.

    python client.py PORT JOB.json INPUTS.npz FACTS.json OUTPUTS.npz

JOB.json says which requests to send, INPUTS.npz has their arrays as `<case>/<input>` (strings as
unicode arrays). OUTPUTS.npz gets the replies' arrays as `<case>/<output>`, FACTS.json all the rest.
"""

import asyncio
import functools
import json
import queue
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]  # not in our environment
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found]
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (  # type: ignore[import-not-found]
    InferenceServerException,
    np_to_triton_dtype,
)


def as_sent(array: Any) -> Any:
    """Strings as the bytes objects that tritonclient serialises."""
    if array.dtype.kind != "U":
        return array
    return np.array([text.encode() for text in array.ravel()], dtype=object).reshape(array.shape)


def as_kept(array: Any) -> Any:
    if array.dtype != object:
        return array
    return np.array([text.decode() for text in array.ravel()], dtype=np.str_).reshape(array.shape)


def infer_input(name: str, array: Any) -> Any:
    sent = as_sent(array)
    made = triton.InferInput(name, list(sent.shape), np_to_triton_dtype(sent.dtype))
    made.set_data_from_numpy(sent)
    return made


def arguments(case: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_name": case["model"],
        "model_version": case.get("version", ""),
        "request_id": case.get("id", ""),
        "parameters": case.get("parameters"),
        "timeout": case.get("timeout"),
        "priority": 1,
        "inputs": [infer_input(name, arrays[f"{case['name']}/{name}"]) for name in case["inputs"]],
        "outputs": [triton.InferRequestedOutput(name) for name in case["outputs"]] or None,
    }


def operations(client: Any) -> dict[str, Any]:
    """What every other method of the client comes to: its reply as JSON, or status and text."""

    def attempt(call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except InferenceServerException as error:
            return [error.status(), error.message()]

    json_of = functools.partial(attempt, as_json=True)
    return {
        "config": json_of(client.get_model_config, "flights"),
        "config of a version": json_of(client.get_model_config, "fixed", "3"),
        "config of a file": json_of(client.get_model_config, "limited"),
        "config of nothing": json_of(client.get_model_config, "nope"),
        "statistics": json_of(client.get_inference_statistics, "logistic"),
        "statistics of a version": json_of(client.get_inference_statistics, "logistic", "1"),
        "statistics of all": json_of(client.get_inference_statistics),
        "statistics of nothing": json_of(client.get_inference_statistics, "nope"),
        "unload": attempt(client.unload_model, "limited", unload_dependents=True),
        "unloaded": [client.is_server_ready(), client.is_model_ready("limited")],
        "index": json_of(client.get_model_repository_index),
        "load": attempt(client.load_model, "limited"),
        "loaded": [client.is_server_ready(), client.is_model_ready("limited")],
        "load of nothing": attempt(client.load_model, "nope"),
        "load of a config": attempt(client.load_model, "limited", config='{"max_batch_size":"16"}'),
        "config of a load": json_of(client.get_model_config, "limited"),
        "load of a wrong config": attempt(client.load_model, "limited", config='"max": {{}}'),
        "load of files": attempt(
            client.load_model, "limited", config="{}", files={"file:1/model.onnx": b"x"}
        ),
        "trace": json_of(client.get_trace_settings),
        "trace of a model": json_of(client.get_trace_settings, "flights"),
        "trace off": json_of(client.update_trace_settings, None, {"trace_level": "OFF"}),
        "trace cleared": json_of(client.update_trace_settings, None, {"trace_level": None}),
        "trace on": json_of(client.update_trace_settings, None, {"trace_level": ["TENSORS"]}),
        "log": json_of(client.get_log_settings),
        "log more": json_of(client.update_log_settings, {"log_verbose_level": 1}),
        "log less": json_of(
            client.update_log_settings, {"log_verbose_level": 0, "log_info": False}
        ),
        "log file": json_of(client.update_log_settings, {"log_file": "/tmp/log"}),
        "system": json_of(client.get_system_shared_memory_status),
        "system unregistered": attempt(client.unregister_system_shared_memory),
        "system registered": attempt(client.register_system_shared_memory, "r", "/r", 64),
        "cuda": json_of(client.get_cuda_shared_memory_status),
        "cuda unregistered": attempt(client.unregister_cuda_shared_memory, "r"),
        "cuda registered": attempt(client.register_cuda_shared_memory, "r", b"", 0, 64),
    }


def streamed(client: Any, job: Any, arrays: Any, outputs: Any) -> dict[str, Any]:
    """Every case on one stream, those that fail among those that do not: equal, or status and text."""
    cases = [*job["cases"], *job["errors"], *job["cases"]]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number, case in enumerate(cases):
        asked = {**arguments(case, arrays), "request_id": str(number)}
        asked["timeout"] = None  # takes whole seconds there
        client.async_stream_infer(**asked)
    facts: dict[str, Any] = {}
    order: list[int] = []
    for _ in cases:
        result, error = answers.get(timeout=30)
        number = int(result.get_response().id if error is None else len(order))
        order.append(number)
        name = cases[number]["name"]
        facts[name] = error.message() if error else _equal(name, result, outputs)
    client.stop_stream()
    assert order == list(range(len(cases))), order
    return facts


async def awaited(port: str, job: Any, arrays: Any, outputs: Any) -> dict[str, Any]:
    """Every case from an event loop, compressed in turn in each way and in none."""
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
        results = await asyncio.gather(
            *(
                client.infer(
                    **arguments(case, arrays),
                    compression_algorithm=("gzip", "deflate", None)[number % 3],
                    headers={"test": "1"},
                )
                for number, case in enumerate(job["cases"])
            )
        )

        async def requests() -> Any:
            for case in job["cases"]:
                yield {**arguments(case, arrays), "timeout": None}

        facts: dict[str, Any] = {
            case["name"]: _equal(case["name"], result, outputs)
            for case, result in zip(job["cases"], results, strict=True)
        }
        replies = client.stream_infer(requests())
        for case in job["cases"]:
            result, error = await anext(replies)
            facts[f"{case['name']}, streamed"] = (
                str(error) if error else _equal(case["name"], result, outputs)
            )
        return facts


def typed(port: str, outputs: Any) -> dict[str, Any]:
    """Contents in the message's own fields, through the stub that tritonclient was generated with;
    then the same with raw contents beside them."""
    facts: dict[str, Any] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, field in (
            *(("INT8", "int_contents"), ("INT32", "int_contents"), ("INT64", "int64_contents")),
            *(("UINT8", "uint_contents"), ("UINT64", "uint64_contents"), ("BOOL", "bool_contents")),
            *(("FP32", "fp32_contents"), ("FP64", "fp64_contents"), ("BYTES", "bytes_contents")),
        ):
            expected = outputs[f"identity {name}/out0"]
            request = service_pb2.ModelInferRequest(model_name=f"identity_{name.lower()}")
            tensor = request.inputs.add(name="in0", datatype=name, shape=expected.shape)
            getattr(tensor.contents, field).extend(as_sent(expected).ravel().tolist())
            result = triton.InferResult(stub.ModelInfer(request))
            facts[name] = _equal(f"identity {name}", result, outputs)
            request.raw_input_contents.append(b"")
            try:
                stub.ModelInfer(request)
            except grpc.RpcError as error:
                facts[f"{name} and raw"] = [str(error.code()), error.details()]
    return facts


def main() -> None:
    port, job_file, inputs_file, facts_file, outputs_file = sys.argv[1:]
    job = json.loads(Path(job_file).read_text())
    with np.load(inputs_file) as archive:
        arrays = {key: archive[key] for key in archive.files}
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    facts: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": {name: client.is_model_ready(name) for name in job["models"]},
        "server": client.get_server_metadata(as_json=True),
        "metadata": {
            name: client.get_model_metadata(name, as_json=True) for name in job["metadata"]
        },
        "index": client.get_model_repository_index(as_json=True),
        "replies": {},
        "asynchronous": {},
        "streamed": {},
        "awaited": {},
        "typed": {},
        "errors": {},
    }
    outputs: dict[str, Any] = {}

    def keep(name: str, result: Any) -> None:
        reply = result.get_response()
        facts["replies"][name] = {
            "id": reply.id,
            "version": reply.model_version,
            "outputs": [[each.name, each.datatype, list(each.shape)] for each in reply.outputs],
        }
        for each in reply.outputs:
            outputs[f"{name}/{each.name}"] = as_kept(result.as_numpy(each.name))

    answers: queue.Queue[tuple[str, Any, Any]] = queue.Queue()
    for case in job["cases"]:
        keep(case["name"], client.infer(**arguments(case, arrays)))
    # And once more without waiting for one another, so that requests meet in the server.
    for case in job["cases"]:
        client.async_infer(
            callback=functools.partial(_answered, answers, case["name"]), **arguments(case, arrays)
        )
    for _ in job["cases"]:
        name, result, error = answers.get(timeout=30)
        facts["asynchronous"][name] = str(error) if error else _equal(name, result, outputs)
    facts["streamed"] = streamed(client, job, arrays, outputs)
    facts["awaited"] = asyncio.run(awaited(port, job, arrays, outputs))
    facts["typed"] = typed(port, outputs)
    for case in job["errors"]:
        try:
            client.infer(**arguments(case, arrays))
            facts["errors"][case["name"]] = ["OK", ""]
        except InferenceServerException as error:
            facts["errors"][case["name"]] = [error.status(), error.message()]
    facts["operations"] = operations(client)
    client.close()
    Path(facts_file).write_text(json.dumps(facts))
    np.savez(outputs_file, **outputs)


def _answered(answers: Any, name: str, result: Any, error: Any) -> None:
    answers.put((name, result, error))


def _equal(name: str, result: Any, outputs: dict[str, Any]) -> bool:
    """Whether the reply equals the one that was kept."""
    return all(
        np.array_equal(as_kept(result.as_numpy(each.name)), outputs[f"{name}/{each.name}"])
        for each in result.get_response().outputs
    )


if __name__ == "__main__":
    main()
