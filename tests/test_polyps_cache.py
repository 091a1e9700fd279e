"""Examples cached on disk."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from experiments.endoscopy.cache import main
from experiments.endoscopy.frame_rates import main as frame_rates
from experiments.endoscopy.frame_rates import measure_frame_rate
from fsg_jax._files import BusyError, lock
from fsg_jax.endoscopy.frames.frame_cache import CachedSource, CacheError, build_cache
from fsg_jax.endoscopy.frames.source import FrameError, FrameSource
from fsg_jax.endoscopy.index.schema import write_index
from tests.polyp_frames import make_set

SHAPES = ((64, 48), (40, 60), (64, 48), (33, 35), (50, 50), (20, 70), (64, 48))


@pytest.fixture
def source(tmp_path):
    table, roots = make_set(tmp_path / "frames", SHAPES, depth_root=tmp_path / "depth")
    return FrameSource(table, roots, 24, keep_aspect=True, depth_root=tmp_path / "depth")


@pytest.fixture
def cache(source, tmp_path):
    build_cache(source, tmp_path / "cache", shard_size=3, workers=2)
    return tmp_path / "cache"


def assert_same_examples(found, expected):
    assert len(found) == len(expected)
    for row in range(len(expected)):
        example = found[row]
        assert list(example) == list(expected[row])
        for name, value in expected[row].items():
            assert example[name].dtype == value.dtype
            assert example[name].tobytes() == value.tobytes()
            assert example[name].shape == value.shape


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("depth", [True, False])
def test_a_cache_gives_the_same_examples_bit_for_bit(source, tmp_path, compression, depth):
    source.columns["size_mm"][2] = np.nan
    source.columns["histology"][:2] = 5, 0
    source.depth_root = source.depth_root if depth else None
    done = []
    build_cache(source, tmp_path / "c", shard_size=3, workers=2, compression=compression, on_row=done.append)
    assert sum(done) == len(SHAPES)
    assert sorted(p.name for p in (tmp_path / "c").glob("shard*")) == [f"shard-0000{i}.arrayrecord" for i in range(3)]
    cached = CachedSource(tmp_path / "c", source)
    assert_same_examples(cached, source)
    assert_same_examples(pickle.loads(pickle.dumps(cached)), source)
    with pytest.raises(IndexError, match="row: expected 0 to 6, found 7"):
        cached[7]


def test_threads_read_the_same(cache, source):
    cached = CachedSource(cache)
    rows = np.random.default_rng(0).integers(0, len(source), 200)
    with ThreadPoolExecutor(4) as pool:
        for row, example in zip(rows, pool.map(cached.__getitem__, rows), strict=True):
            assert example["row"] == row
            np.testing.assert_array_equal(example["frame"], source[row]["frame"])


def test_a_build_that_failed_keeps_its_shards_and_goes_on(source, tmp_path):
    broken = source.frame_path(4)
    content, stat = broken.read_bytes(), broken.stat()
    broken.write_bytes(b"\0" * len(content))
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(FrameError, match=r"frame_4\.jpg"):
        build_cache(source, tmp_path / "c", shard_size=3)
    with pytest.raises(CacheError, match="2 of 3 shards are missing; run the build again"):
        CachedSource(tmp_path / "c")
    first = (tmp_path / "c/shard-00000.arrayrecord").stat().st_mtime_ns
    broken.write_bytes(content)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = []
    build_cache(source, tmp_path / "c", shard_size=3, on_row=done.append)
    assert done == [3, 1, 1, 1, 1]
    assert (tmp_path / "c/shard-00000.arrayrecord").stat().st_mtime_ns == first
    assert not list((tmp_path / "c").glob("*.tmp"))
    assert_same_examples(CachedSource(tmp_path / "c", source), source)


def test_one_process_builds_at_a_time(cache, source):
    with lock(cache / "lock"), pytest.raises(BusyError, match="cache is in use by another process"):
        build_cache(source, cache, shard_size=3)
    build_cache(source, cache, shard_size=3)


def test_what_a_killed_build_leaves_is_no_hindrance(source, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("lock", "manifest.json.7.tmp", "files.npy"):  # killed before the manifest had its name
        (folder / name).write_text("half")
    build_cache(source, folder, shard_size=3)
    (folder / "shard-00001.arrayrecord").rename(folder / "shard-00001.arrayrecord.7.tmp")
    (folder / "shard-00002.arrayrecord").rename(folder / "shard-00002.arrayrecord.tmp")
    build_cache(source, folder, shard_size=3)
    assert not list(folder.glob("shard-*.tmp"))
    assert_same_examples(CachedSource(folder, source), source)


def test_a_cache_that_was_cut_off_from_its_list_of_files(cache, source):
    np.save(cache / "fewer.npy", np.load(cache / "files.npy")[:3])
    for content in (b"", (cache / "files.npy").read_bytes()[:150], (cache / "fewer.npy").read_bytes()):
        (cache / "files.npy").write_bytes(content)
        with pytest.raises(CacheError, match=r"cache: expected .* found one with a damaged files\.npy"):
            CachedSource(cache, source)


def _touch(path: Path):
    os.utime(path, ns=(0, 0))


STALE = {
    "size": (lambda s: setattr(s, "size", 32), r"size 24 \(here 32\)"),
    "aspect": (lambda s: setattr(s, "keep_aspect", False), r"keep_aspect True \(here False\)"),
    "depth": (lambda s: setattr(s, "depth_root", None), r"depth True \(here False\)"),
    "box": (
        lambda s: s.columns["box"].__setitem__((3, 0), 1),
        "other frames, boxes, sizes or labels in the rows of the index",
    ),
    "size_mm": (
        lambda s: s.columns["size_mm"].__setitem__(0, 9),
        "other frames, boxes, sizes or labels in the rows of the index",
    ),
    "histology": (
        lambda s: s.columns["histology"].__setitem__(0, 2),
        "other frames, boxes, sizes or labels in the rows of the index",
    ),
    "frame": (lambda s: _touch(s.frame_path(5)), r"files of 1 rows that have changed since, the first .*frame_5\.jpg"),
    "map": (lambda s: _touch(s.depth_path(6)), r"files of 1 rows that have changed since, the first .*frame_6\.jpg"),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_cache_is_refused_with_the_reason(cache, source, kind):
    change, reason = STALE[kind]
    change(source)
    with pytest.raises(CacheError, match=f"expected the cache of these examples, found one with {reason}"):
        CachedSource(cache, source)
    with pytest.raises(CacheError, match=reason):
        build_cache(source, cache, shard_size=3)


def test_another_number_of_rows_or_layout_is_refused(cache, source, tmp_path):
    table, roots = make_set(tmp_path / "frames", SHAPES[:2])
    with pytest.raises(CacheError, match=r"found one with rows 7 \(here 2\)"):
        CachedSource(cache, FrameSource(table, roots, 24, keep_aspect=True, depth_root=source.depth_root))
    with pytest.raises(CacheError, match=r"shard_size 3 \(here 256\), compression snappy \(here none\); choose"):
        build_cache(source, cache, compression="none")


def test_moved_frames_keep_the_cache(cache, source, tmp_path):
    (tmp_path / "frames").rename(tmp_path / "elsewhere")
    source.roots = {"made-up": tmp_path / "elsewhere"}
    assert len(CachedSource(cache, source)) == len(SHAPES)


def _flip_in(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 255
    path.write_bytes(data)


def test_a_damaged_record_is_named_and_the_others_are_read(source, tmp_path):
    build_cache(source, tmp_path / "c", shard_size=3, compression="none")
    path = tmp_path / "c/shard-00001.arrayrecord"
    payload = source[4]["frame"].tobytes()[500:600]
    _flip_in(path, path.read_bytes().index(payload))
    cached = CachedSource(tmp_path / "c")
    with pytest.raises(CacheError, match=r"shard-00001\.arrayrecord: row 4 is damaged .*delete the file and build"):
        cached[4]
    np.testing.assert_array_equal(cached[3]["frame"], source[3]["frame"])
    path.unlink()
    build_cache(source, tmp_path / "c", shard_size=3, compression="none")
    assert_same_examples(CachedSource(tmp_path / "c"), source)


@pytest.mark.parametrize("length", [0, 0.5])
def test_a_shard_cut_short(cache, length):
    path = cache / "shard-00002.arrayrecord"
    path.write_bytes(path.read_bytes()[: int(length * path.stat().st_size)])
    with pytest.raises(CacheError, match=r"shard-00002\.arrayrecord: row 6 is damaged"):
        CachedSource(cache)[6]


def test_shards_that_were_swapped(cache):
    paths = [cache / f"shard-0000{i}.arrayrecord" for i in (0, 1)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    with pytest.raises(CacheError, match=r"shard-00000\.arrayrecord: row 1 is damaged \(found row 4\)"):
        CachedSource(cache)[1]


def test_folders_that_are_no_cache(source, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such file; expected a cache"):
        CachedSource(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    with pytest.raises(CacheError, match=r"expected an empty folder or a cache, found \['notes.txt'\]"):
        build_cache(source, tmp_path / "full")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_text("{}")
    with pytest.raises(CacheError, match=r"manifest\.json is damaged .*delete the folder"):
        CachedSource(tmp_path / "bad")


def test_bad_arguments(source, tmp_path):
    for name in ("workers", "shard_size"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, found 0"):
            build_cache(source, tmp_path / "c", **{name: 0})
    assert not (tmp_path / "c").exists()


def _index(tmp_path):
    table, roots = make_set(tmp_path / "frames", depth_root=tmp_path / "depth")
    write_index(table, tmp_path / "index.parquet", {name: str(root) for name, root in roots.items()})
    return table, roots


def test_the_command(tmp_path, capsys):
    table, roots = _index(tmp_path)
    options = ["--size", "16", "--depth-root", str(tmp_path / "depth"), "--keep-aspect", "--workers", "2"]
    for _ in range(2):  # the second time there is nothing left to do
        main([str(tmp_path / "index.parquet"), "--out", str(tmp_path / "c"), *options])
        assert "3 examples in 1 shard" in capsys.readouterr().out
    expected = FrameSource(table, roots, 16, keep_aspect=True, depth_root=tmp_path / "depth")
    assert_same_examples(CachedSource(tmp_path / "c", expected), expected)
    assert json.loads((tmp_path / "c/manifest.json").read_text())["size"] == 16


def test_the_command_refuses_missing_maps_at_the_start(tmp_path):
    _index(tmp_path)
    (tmp_path / "depth/made-up/case1/frame_1.png").unlink()
    command = [str(tmp_path / "index.parquet"), "--out", str(tmp_path / "c"), "--depth-root", str(tmp_path / "depth")]
    with pytest.raises(FileNotFoundError, match=r"1 depth maps are missing, the first: .*frame_1\.png"):
        main(command)
    assert not (tmp_path / "c").exists()


def test_the_rates_of_decoding_and_of_the_cache(tmp_path, capsys):
    _index(tmp_path)
    main([str(tmp_path / "index.parquet"), "--out", str(tmp_path / "c"), "--size", "16"])
    options = ["--size", "16", "--cache", str(tmp_path / "c"), "--seconds", "0.05"]
    frame_rates([str(tmp_path / "index.parquet"), *options])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["decoded, 16 px", "cached, 16 px"]


def test_a_rate_counts_what_was_read(monkeypatch):
    clock, read = [0.0], []

    class Slow:
        def __getitem__(self, row):
            read.append(row)
            clock[0] += 0.25

    monkeypatch.setattr("experiments.endoscopy.frame_rates.perf_counter", lambda: clock[0])
    monkeypatch.setattr("experiments.endoscopy.frame_rates.process_time", lambda: clock[0] / 2)
    rate = measure_frame_rate(Slow(), [4, 7, 5], 2.0)
    assert read == [4, *[4, 7, 5, 4, 7, 5, 4, 7]]
    assert (rate.examples, rate.wall_s, rate.cpu_s) == (8, 2.0, 1.0)
    assert (rate.per_second, rate.per_core) == (4.0, 8.0)
    with pytest.raises(ValueError, match="expected an integer >= 1, found 0"):
        measure_frame_rate(Slow(), [], 1.0)
