import io

import pytest

from serve_app.images.parts import joined


def test_parts_are_read_as_one_file() -> None:
    file = joined(b"abc", b"", memoryview(b"defgh")[1:3], b"i")
    assert file.read() == b"abcefi"
    assert (file.seek(2), file.read(3)) == (2, b"cef")
    assert (file.seek(-2, io.SEEK_END), file.read()) == (4, b"fi")
    assert (file.seek(-1, io.SEEK_CUR), file.tell()) == (5, 5)
    assert (file.seek(99), file.read(1)) == (99, b"")
    with pytest.raises(ValueError, match="before the beginning"):
        file.seek(-1)


def test_no_parts_are_an_empty_file() -> None:
    assert joined().read() == b""
    assert joined().seek(0, io.SEEK_END) == 0
