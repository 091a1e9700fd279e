"""Files are read only if they are what they should be: regular, of bounded size, UTF-8, JSON without doubt."""

import os

import pytest

from fsg_jax._files import check_file, local, read_json, read_text

BAD_JSON = {
    "cut": b'{"a": 1',
    "empty": b"",
    "a list": b"[1]",
    "a key twice": b'{"a": 1, "a": 2}',
    "twice within": b'{"b": [{"a": 1, "a": 2}]}',
    "deep": b'{"a":' * 100_000,
    "deep lists": b"[" * 1_000_000,
    "half a character": b'{"a": "\\ud800"}',
    "no UTF-8": b'{"a": "\xff"}',
    "digits": b'{"a": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json is damaged: expected .*, found "):
        read_json(tmp_path / "a.json")


def test_a_pair_is_one_character(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "a.json") == {"a": "\N{GRINNING FACE}"}


def test_only_regular_files_of_bounded_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match=f"{path}: expected a regular file"):
            check_file(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"large: expected at most 268435456 bytes, found 1099511627776"):
        read_text(tmp_path / "large")
    with pytest.raises(FileNotFoundError, match="none"):
        read_text(tmp_path / "none")


def test_paths_are_local_and_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(local(path)) for path in ("~", "~/x", "x/~", "/a:/b")] == ["/home/me", "/home/me/x", "x/~", "/a:/b"]
    for url in ("gs://bucket/x", "s3:/bucket", "file:///x", "https://x.org/y"):
        with pytest.raises(ValueError, match=f"{url}: expected a path of a local file system, found a URL"):
            local(url)
