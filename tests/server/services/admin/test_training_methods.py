"""CancelTraining and TrainingStatus, over a real control loop."""

import asyncio

import pytest

from tests.admin_world import Admin
from tests.loop_fakes import wait_until
from trimtab.proto import admin_pb2 as pb
from trimtab.server.errors import InvalidRequestError, NotFoundError, PreconditionError
from trimtab.server.loop.training_progress import ProgressReading, TrainingStatus
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult
from trimtab.server.services.admin.loop_methods import training_message

STATUS = pb.TrainingStatusRequest(model_name="m")


def test_a_training_is_cancelled_in_the_name_of_the_credential(admin: Admin) -> None:
    admin.ask(pb.TrainRequest(model_name="m", actor="bob"), pb.TrainResponse)
    (child,) = admin.trainer.trainings

    async def main() -> pb.CancelTrainingResponse:
        request = pb.CancelTrainingRequest(model_name="m", actor="x", reason="wrong data")
        call = asyncio.create_task(admin.call(request, pb.CancelTrainingResponse, actor="ann"))
        await asyncio.to_thread(wait_until, lambda: bool(child.killed), "the kill")
        assert not call.done(), "it answers once the training is over"
        child.finish(TrainingResult("failed", "the trainer was cancelled", killed=True))
        return await call

    answer = asyncio.run(main())
    assert (answer.training_id, answer.text) == ("m-1", "training m-1 was cancelled")
    assert child.killed == "was cancelled by ann: wrong data"
    last = admin.registry.model("m").history().entries[-1]
    assert (last.kind, last.actor, last.reason) == ("training_cancelled", "ann", "wrong data")


def test_what_cannot_be_cancelled_is_refused(admin: Admin) -> None:
    def refused(error: type[Exception], **fields: str) -> None:
        with pytest.raises(error):
            admin.ask(pb.CancelTrainingRequest(**fields), pb.CancelTrainingResponse)

    refused(NotFoundError, model_name="x")
    refused(NotFoundError, model_name="m")
    refused(InvalidRequestError, model_name="m", reason="x" * 5000)
    admin.ask(pb.TrainRequest(model_name="m"), pb.TrainResponse)
    refused(PreconditionError, model_name="m", training_id="m-2")
    assert not admin.trainer.trainings[0].killed


def test_the_status_tells_what_runs(admin: Admin) -> None:
    idle = admin.ask(STATUS, pb.TrainingStatusResponse)
    assert idle == pb.TrainingStatusResponse(model_name="m")
    admin.ask(pb.TrainRequest(model_name="m", actor="ann", reason="because"), pb.TrainResponse)
    child = admin.trainer.trainings[0]
    child.on_progress(TrainingProgress("fit", 0.4, "fitting", 0.55))
    wait_until(lambda: admin.ask(STATUS, pb.TrainingStatusResponse).stage == "fit", "the stage")
    found = admin.ask(STATUS, pb.TrainingStatusResponse)
    assert (found.training_id, found.actor, found.signal) == ("m-1", "ann", "admin")
    assert (found.reason, found.message) == ("because", "fitting")
    assert 0.4 <= found.fraction <= 0.55 and found.HasField("eta_s")
    child.finish(TrainingResult("refused", "worse"))
    with pytest.raises(NotFoundError):
        admin.ask(pb.TrainingStatusRequest(model_name="x"), pb.TrainingStatusResponse)


def test_an_eta_that_is_not_known_is_absent() -> None:
    status = TrainingStatus("m", "m-1", progress=ProgressReading("start", "loading", 0.0, 1.5))
    message = training_message(status)
    assert not message.HasField("eta_s") and message.elapsed_s == 1.5
    assert training_message(TrainingStatus("m", waits="drift; 3 of 5 labels")).waits
