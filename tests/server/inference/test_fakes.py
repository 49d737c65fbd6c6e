"""Each fake is held to the real thing, so that tests with fakes mean something."""

import time
from pathlib import Path

import numpy as np

from tests import models
from tests.fakes import FakeClock, FakeSession, fake_servable
from trimtab.server.inference.onnx_session import open_session
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.tensor import Tensor


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
    inputs = {"x": Tensor("FP32", (2, 2), np.ones((2, 2), np.float32))}
    real = Servable(
        model="m",
        version=1,
        session=opened.session,
        signature=opened.signature,
        batchable=True,
    )
    names = ("y",)
    assert real.run(inputs, names)["y"].wire() == fake.run(inputs, names)["y"].wire()


def test_the_fake_clock_is_seconds_that_do_not_go_back() -> None:
    clock = FakeClock()
    before = clock()
    assert clock() == before
    clock.advance(1.5)
    assert clock() - before == 1.5
    assert isinstance(clock(), type(time.monotonic()))
