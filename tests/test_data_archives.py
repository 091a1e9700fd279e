"""Archives, digests, downloads and pickles: what is refused, and that nothing is written or run."""

import hashlib
import pickle

import cifar_files
import numpy as np
import pytest

from fsg_jax.data import check_digest, download_cifar100, load_cifar100, load_pickle, read_archive


class Runs:
    """Unpickles by calling a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_reads_the_wanted_files(tmp_path):
    path = cifar_files.write_members(tmp_path / "a.tar.gz", {"top/a": b"1", "./top/b": b"2", "top/c": b"3"})
    assert list(read_archive(path, ["b", "a"], "top").items()) == [("b", b"2"), ("a", b"1")]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "top/../../evil", "evil", "top\\..\\..\\evil"])
def test_member_outside_the_folder_is_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = cifar_files.write_members(tmp_path / "in" / "a.tar.gz", {"top/a": b"1", name: b"evil"})
    with pytest.raises(ValueError, match=r"a\.tar\.gz: expected only members inside 'top', found .*evil'"):
        read_archive(path, ["a"], "top")
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.tar.gz"]


def test_link_is_refused(tmp_path):
    path = cifar_files.write_members(tmp_path / "a.tar.gz", {}, links={"top/a": "/etc/passwd"})
    with pytest.raises(ValueError, match="found 'top/a', a link or a device"):
        read_archive(path, ["a"], "top")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_truncated_archive(tmp_path, keep):
    path = cifar_files.write_archive(cifar_files.write_python(tmp_path))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=r"cifar-100-python\.tar\.gz: expected .*cut short"):
        read_archive(path, ["train", "test", "meta"], "cifar-100-python")


def test_file_that_is_no_archive_or_lacks_a_member(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"a\.tar\.gz: expected a whole \.tar\.gz archive, .*: cut short or damaged"):
        read_archive(tmp_path / "a.tar.gz", ["a"], "top")
    path = cifar_files.write_members(tmp_path / "b.tar.gz", {"top/a": b"1"})
    with pytest.raises(ValueError, match="expected b, c in top/, found no such file"):
        read_archive(path, ["a", "b", "c"], "top")
    with pytest.raises(FileNotFoundError, match=r"none\.tar\.gz: no such file"):
        read_archive(tmp_path / "none.tar.gz", ["a"], "top")


def test_digests(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for algorithm in ("md5", "sha1", "sha256"):
        digest = hashlib.new(algorithm, b"content").hexdigest()
        check_digest(path, digest)
        check_digest(path, f"{algorithm}:{digest.upper()}")
    with pytest.raises(ValueError, match=f"file: expected md5 {'0' * 32}, found "):
        check_digest(path, "0" * 32)
    for digest in ("abc", "md5:xyz", "crc:" + "0" * 8, ""):
        with pytest.raises(ValueError, match=r"digest: expected 'md5:'.*, found '"):
            check_digest(path, digest)
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        check_digest(tmp_path / "none", "0" * 32)


def test_python_2_pickle_of_everything_official():
    value = {b"data": cifar_files.rows("test"), b"labels": [3, 1], b"name": b"caf\xe9"}
    loaded = load_pickle(cifar_files.pickle_py2(value), "file")
    np.testing.assert_array_equal(loaded["data"], value[b"data"])
    assert (loaded["labels"], loaded["name"]) == ([3, 1], "café")


def test_python_3_pickle():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(load_pickle(pickle.dumps([array], protocol=2 + 2), "file")[0], array)


def test_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    data = pickle.dumps({"data": Runs(open, str(trace), "w")}, protocol=2)
    with pytest.raises(ValueError, match=r"train: expected a pickle of only arrays.*reference to .*open"):
        load_pickle(data, "train")
    assert not trace.exists()
    pickle.loads(data)["data"].close()  # the same bytes do run in an open unpickler
    assert trace.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, np.load, np.lib.format.read_array])
def test_functions_are_refused(function):
    with pytest.raises(ValueError, match="found a reference to"):
        load_pickle(pickle.dumps(Runs(function, "1"), protocol=2), "file")


def test_dotted_name_and_attribute_setting_reach_nothing():
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93."
    with pytest.raises(ValueError, match=r"reference to numpy\.ndarray\.dump"):
        load_pickle(dotted, "file")
    # Sets an attribute on the object that stands for numpy.dtype; later files must not see it.
    load_pickle(b"\x80\x02cnumpy\ndtype\nN}(X\x0c\x00\x00\x00__defaults__N\x75\x86b.", "file")
    assert load_pickle(cifar_files.pickle_py2(np.ones(2, np.uint8)), "file").tolist() == [1, 1]


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_truncated_pickle(cut):
    data = cifar_files.pickle_py2(cifar_files.split_pickle("test"))
    with pytest.raises(ValueError, match="some/train: expected a pickle of only arrays"):
        load_pickle(data[:cut], "some/train")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, folder) of a local web server."""
    folder = tmp_path / "served"
    folder.mkdir()
    with cifar_files.web_server(folder, monkeypatch) as (address, _):
        yield address, folder


def test_download(tmp_path, server):
    pytest.importorskip("pooch")
    address, folder = server
    archive = cifar_files.write_archive(cifar_files.write_python(folder))
    digest = "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
    url = f"{address}/{archive.name}"
    path = download_cifar100(tmp_path / "new" / "data", url=url, known_hash=digest)
    assert path == tmp_path / "new" / "data" / archive.name
    dataset = load_cifar100(path.parent, "train", checksum=digest)
    np.testing.assert_array_equal(dataset.images, cifar_files.arrays("train")["images"])
    archive.unlink()  # a file with the right digest is not fetched again
    assert download_cifar100(path.parent, url=url, known_hash=digest, progress=False) == path


def test_download_of_other_bytes_leaves_nothing(tmp_path, server):
    pytest.importorskip("pooch")
    address, folder = server
    (folder / "a.tar.gz").write_bytes(b"changed on the way")
    with pytest.raises(ValueError, match=r"a\.tar\.gz"):
        download_cifar100(tmp_path / "to", url=f"{address}/a.tar.gz", progress=False)
    with pytest.raises(OSError, match="404"):
        download_cifar100(tmp_path / "to", url=f"{address}/none.tar.gz", progress=False)
    assert list((tmp_path / "to").iterdir()) == []
