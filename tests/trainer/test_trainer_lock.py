import os
from pathlib import Path

import pytest

from trimtab.trainer.errors import BusyError
from trimtab.trainer.trainer_lock import trainer_lock


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    data = tmp_path / ".trimtab" / "m"
    with trainer_lock(data, "m"):
        with pytest.raises(BusyError) as caught, trainer_lock(data, "m"):
            pass
        assert f"another process (pid {os.getpid()}) is training m" in str(caught.value)
    with trainer_lock(data, "m"):
        pass


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), trainer_lock(tmp_path, "m"):
        raise KeyError
    with trainer_lock(tmp_path, "m"):
        pass
