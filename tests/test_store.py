"""The store gives back what was put, or nothing (behaviours 37 and 38)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vyre import store as store_module
from vyre.store import HEADER_BYTES, MAX_ENTRY_BYTES, Store, key_of, platform_cache_dir


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "objects")


def entry_of(store: Store, key: bytes | str) -> Path:
    path = store.path(key)
    assert path is not None
    return path


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 4096, os.urandom(100_001)], ids=["empty", "one", "page", "many"])
def test_what_was_put_comes_back(store: Store, data: bytes) -> None:
    store.put(b"key", data)
    assert store.get(b"key") == data
    assert store.problem == ""


def test_a_key_that_was_never_put_is_a_miss(store: Store) -> None:
    assert store.get(b"key") is None
    store.put(b"key", b"data")
    assert store.get(b"other") is None


def test_another_process_finds_the_entry(store: Store) -> None:
    store.put("a key", b"data")
    code = "import sys, pathlib; from vyre.store import Store; print(Store(pathlib.Path(sys.argv[1])).get('a key'))"
    out = subprocess.run([sys.executable, "-c", code, str(store.root)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "b'data'"


def test_a_later_put_replaces_the_entry(store: Store) -> None:
    store.put(b"key", b"old")
    store.put(b"key", b"newer")
    assert store.get(b"key") == b"newer"
    assert len(list((store.root or Path()).iterdir())) == 1


def test_an_entry_flipped_in_any_bit_is_a_miss(store: Store) -> None:
    store.put(b"key", b"sixteen bytes ok")
    path = entry_of(store, b"key")
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            assert store.get(b"key") is None, f"bit {bit} of byte {place}"
    path.write_bytes(good)
    assert store.get(b"key") == b"sixteen bytes ok"


def test_an_entry_cut_at_any_byte_is_a_miss(store: Store) -> None:
    store.put(b"key", b"sixteen bytes ok")
    path = entry_of(store, b"key")
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert store.get(b"key") is None, f"cut at {length}"


def test_an_entry_with_bytes_after_its_end_is_a_miss(store: Store) -> None:
    store.put(b"key", b"data")
    path = entry_of(store, b"key")
    path.write_bytes(path.read_bytes() + b"\0")
    assert store.get(b"key") is None


def test_an_entry_above_the_size_limit_is_a_miss_and_is_not_read(store: Store) -> None:
    store.put(b"key", b"data")
    os.truncate(entry_of(store, b"key"), HEADER_BYTES + MAX_ENTRY_BYTES + 1)
    assert store.get(b"key") is None


def test_data_above_the_size_limit_is_not_kept_and_the_reason_is_noted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_ENTRY_BYTES", 3)
    store.put(b"key", b"data")
    assert store.get(b"key") is None
    assert "limit" in store.problem


def test_an_entry_that_is_a_symlink_is_a_miss_even_when_it_points_to_good_bytes(store: Store, tmp_path: Path) -> None:
    store.put(b"key", b"data")
    path = entry_of(store, b"key")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.get(b"key") is None


def test_put_replaces_a_symlink_and_leaves_its_target_alone(store: Store, tmp_path: Path) -> None:
    store.put(b"key", b"data")
    path = entry_of(store, b"key")
    path.unlink()
    (tmp_path / "victim").write_bytes(b"precious")
    path.symlink_to(tmp_path / "victim")
    store.put(b"key", b"data")
    assert store.get(b"key") == b"data"
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_good_entry_under_another_keys_name_is_a_miss(store: Store) -> None:
    store.put(b"one", b"first")
    store.put(b"two", b"second")
    entry_of(store, b"one").replace(entry_of(store, b"two"))
    assert store.get(b"two") is None


def test_a_directory_or_a_fifo_in_the_entrys_place_is_a_miss_and_does_not_hang(store: Store) -> None:
    (store.root or Path()).mkdir()
    entry_of(store, b"directory").mkdir()
    os.mkfifo(entry_of(store, b"fifo"))
    assert store.get(b"directory") is None
    assert store.get(b"fifo") is None
    store.put(b"directory", b"data")
    assert "cannot write" in store.problem
    assert not [p for p in (store.root or Path()).iterdir() if p.name.startswith(".writing-")]


def test_a_hundred_concurrent_writers_leave_one_valid_entry(store: Store) -> None:
    values = [bytes([i]) * (1_000 + i) for i in range(100)]
    start = threading.Barrier(100)
    seen: list[bytes | None] = []

    def write(value: bytes) -> None:
        start.wait()
        store.put(b"key", value)
        seen.append(store.get(b"key"))

    threads = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(b"key") in values
    assert len(seen) == 100
    assert all(value in values for value in seen)
    assert len(list((store.root or Path()).iterdir())) == 1


def test_concurrent_processes_leave_one_valid_entry(store: Store) -> None:
    code = (
        "import sys, pathlib; from vyre.store import Store; s = Store(pathlib.Path(sys.argv[1]))\n"
        "for i in range(50): s.put(b'key', sys.argv[2].encode() * 5000); assert len(s.get(b'key')) == 5000"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(store.root), letter]) for letter in "abcd"]
    assert [run.wait() for run in runs] == [0, 0, 0, 0]
    assert store.get(b"key") in [letter.encode() * 5000 for letter in "abcd"]
    assert len(list((store.root or Path()).iterdir())) == 1


def test_a_writer_killed_between_write_and_rename_leaves_the_old_entry(store: Store) -> None:
    store.put(b"key", b"old")
    code = (
        "import os, sys, pathlib; from vyre.store import Store\n"
        "os.replace = lambda *a: os._exit(9)\n"
        "Store(pathlib.Path(sys.argv[1])).put(b'key', b'new')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(store.root)]).returncode == 9
    left = [p for p in (store.root or Path()).iterdir() if p.name.startswith(".writing-")]
    assert len(left) == 1, "the writer really died with its file written"
    assert store.get(b"key") == b"old"

    os.utime(left[0], (0, 0))
    store.put(b"other", b"data")
    assert not left[0].exists(), "the next writer removes what a dead one left, once it is old"


def test_a_rename_that_fails_leaves_the_old_entry_and_no_litter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(b"key", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "replace", fail)
    store.put(b"key", b"new")
    assert store.problem.endswith("No space left on device")
    assert store.get(b"key") == b"old"
    assert len(list((store.root or Path()).iterdir())) == 1


def test_a_root_that_cannot_be_made_means_no_caching_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "objects")
    store.put(b"key", b"data")
    assert store.get(b"key") is None
    assert str(store.root) in store.problem


def test_a_root_without_write_permission_means_no_caching_and_no_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        store = Store(tmp_path / "objects")
        store.put(b"key", b"data")
        assert store.get(b"key") is None
        assert store.problem
    finally:
        tmp_path.chmod(0o700)


def test_a_user_without_a_home_gets_no_caching_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(store_module.Path, "home", staticmethod(fail))
    store = Store()
    store.put(b"key", b"data")
    assert store.get(b"key") is None
    assert "HOME" in store.problem


def test_the_default_root_is_the_platforms_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().root == tmp_path / "vyre" / "objects"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert platform_cache_dir() == tmp_path / "home" / ".cache" / "vyre"


def test_entries_are_not_readable_by_others(store: Store) -> None:
    store.put(b"key", b"data")
    assert entry_of(store, b"key").stat().st_mode & 0o077 == 0
    assert (store.root or Path()).stat().st_mode & 0o077 == 0


def test_a_key_is_independent_of_the_order_in_which_its_parts_are_named() -> None:
    assert key_of({"program": b"p", "cpu": "znver4"}) == key_of({"cpu": "znver4", "program": b"p"})


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from vyre.store import key_of; print(key_of({'program': b'p', 'cpu': 'znver4', 'abi': 3}).hex())"
    here = key_of({"program": b"p", "cpu": "znver4", "abi": 3}).hex()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert run.stdout.strip() == here


def test_each_part_of_a_key_counts() -> None:
    base: dict[str, bytes | str | int] = {
        "program": b"p", "arch": "x86-64", "compiler": "llvm 20", "options": "-O3", "abi": 1,
    }  # fmt: skip
    keys = {key_of(base)}
    for name in base:
        keys.add(key_of({**base, name: "different"}))
        keys.add(key_of({k: v for k, v in base.items() if k != name}))
    keys |= {key_of({"a": "bc"}), key_of({"ab": "c"}), key_of({"a": b"bc"}), key_of({"a": 1}), key_of({"a": "1"})}
    assert len(keys) == 1 + 2 * len(base) + 5


def test_a_key_part_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="part 'pi' of a store key is a float"):
        key_of({"pi": 3.14})  # type: ignore[dict-item]
