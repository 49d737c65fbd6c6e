"""Each fake is held to the real thing, so that tests with fakes mean something."""

import time
from pathlib import Path

import numpy as np

from tests import models
from tests.fakes import FakeCall, FakeClock, FakeSession, fake_servable
from trimtab.server.inference.onnx_session import open_session
from trimtab.server.inference.request_queue import finish_here
from trimtab.server.inference.servable import Servable


def test_the_fake_session_computes_and_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    models.write(tmp_path / "1", models.scaled(2.0))
    real = open_session(tmp_path / "1/model.onnx").session
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    (expected,) = real.run(["y"], {"x": x})
    (got,) = FakeSession().run(["y"], {"x": x})
    assert np.array_equal(got, expected)
    assert (got.dtype, got.flags.c_contiguous) == (expected.dtype, expected.flags.c_contiguous)


def test_the_fake_servable_has_the_signature_of_a_real_one(tmp_path: Path) -> None:
    models.write(tmp_path / "1", models.scaled(2.0))
    opened = open_session(tmp_path / "1/model.onnx")
    fake = fake_servable(FakeSession())
    assert fake.signature == opened.signature
    assert fake.batchable == opened.batch_dimension
    call = FakeCall([1.0, 2.0])
    real = Servable(
        model="m",
        version=1,
        session=opened.session,
        signature=opened.signature,
        batchable=True,
    )
    names = ("y",)
    assert real.run(call.inputs, names)["y"].wire() == fake.run(call.inputs, names)["y"].wire()


def test_the_fake_clock_is_seconds_that_do_not_go_back() -> None:
    clock = FakeClock()
    before = clock()
    assert clock() == before
    clock.advance(1.5)
    assert clock() - before == 1.5
    assert isinstance(clock(), type(time.monotonic()))


def test_the_fake_call_keeps_its_outcome() -> None:
    call = FakeCall()
    finish_here([(call, ValueError("no"))])
    assert str(call.wait()) == "no"
