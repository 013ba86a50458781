"""Following a keys file: rewritten, replaced, swapped as Kubernetes does, broken and mended."""

import os
from pathlib import Path

import pytest

from dualmap_router.api_keys import KeysError
from dualmap_router.key_watch import KeyWatch

from .keys_file import entry, text_of, write


def names(watch: KeyWatch) -> set[str]:
    return {key for key in ("a", "b", "c") if watch.keys.find(key) is not None}


async def test_a_file_written_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", entry("a"))
    watch = KeyWatch(str(path))
    assert names(watch) == {"a"}
    write(path, entry("a"), entry("b"))
    await watch.poll()
    assert names(watch) == {"a", "b"}
    write(path, entry("c"))
    await watch.poll()
    assert names(watch) == {"c"}


async def test_a_change_that_shows_no_other_time(tmp_path: Path) -> None:
    """Written within one tick of the file system's clock, with as many bytes."""
    path = write(tmp_path / "keys.json", entry("a"))
    watch = KeyWatch(str(path))
    before = path.stat()
    write(path, entry("b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    await watch.poll()
    assert names(watch) == {"b"}


async def test_a_file_that_does_not_change_is_read_no_more(tmp_path: Path) -> None:
    watch = KeyWatch(str(write(tmp_path / "keys.json", entry("a"))))
    await watch.poll()
    keys = watch.keys
    for _ in range(3):
        await watch.poll()
    assert watch.keys is keys


async def test_a_replaced_file(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", entry("a"))
    watch = KeyWatch(str(path))
    write(tmp_path / "new.json", entry("b")).replace(path)
    await watch.poll()
    assert names(watch) == {"b"}


async def test_a_mounted_secret(tmp_path: Path) -> None:
    """Kubernetes: keys.json -> ..data/keys.json, ..data -> a folder, and a rename swaps that link."""
    for folder, key in (("..one", "a"), ("..two", "b")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "keys.json", entry(key))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    watch = KeyWatch(str(tmp_path / "keys.json"))
    assert names(watch) == {"a"}
    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    await watch.poll()
    assert names(watch) == {"b"}


@pytest.mark.parametrize("text", [b"", b"{", text_of(entry("b", tenant="")), None])
async def test_a_broken_file_changes_nothing(
    tmp_path: Path, text: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "keys.json", entry("a"))
    watch = KeyWatch(str(path))
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text)
    for _ in range(3):
        await watch.poll()
        assert (names(watch), watch.stale) == ({"a"}, True)
    [said] = [record for record in caplog.records if record.getMessage() == "keys.unusable"]
    assert said.__dict__["file"] == str(path)
    write(path, entry("a"), entry("b"))
    await watch.poll()
    assert (names(watch), watch.stale) == ({"a", "b"}, False)


def test_the_first_one_must_be_good(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        KeyWatch(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(KeysError, match="keys"):
        KeyWatch(str(tmp_path / "bad.json"))
