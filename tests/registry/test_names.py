import pytest

from trimtab.registry.errors import InvalidNameError
from trimtab.registry.names import check_model_name, is_plain


@pytest.mark.parametrize("name", ["airtime", "a", "model-1_v2.x", "Größe", "x" * 255, "7"])
def test_a_plain_name_is_accepted(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "a/b", "/", "../up", "a b", "a\tb", "a\n", "\x00", "a\x7f"),
        *("a\u00a0b", "a\u200bb", "a\u2028b", "\udc80", "x" * 256, "ü" * 128),
    ],
)
def test_a_name_that_is_no_plain_path_is_refused_with_its_limits(name: str) -> None:
    assert not is_plain(name)
    with pytest.raises(InvalidNameError, match=r"1 to 255 bytes"):
        check_model_name(name)
