"""What several tests of services share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin_world import Admin


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    admin = Admin(tmp_path)
    yield admin
    admin.loop.stop()
