"""The phantom: one content in two layouts, sizes that agree with the geometry, damage that is listed."""

import csv
import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.endoscopy.phantom.camera import Camera, Pose
from experiments.endoscopy.phantom.colon import Ellipsoid, Polyp, random_scene
from experiments.endoscopy.phantom.damage import DAMAGES
from experiments.endoscopy.phantom.film_video import DEPTH_UNIT_MM
from experiments.endoscopy.phantom.phantom_plan import Config, plan_videos, polyp_sizes
from experiments.endoscopy.phantom.phantom_set import make_phantom, new_folder
from experiments.endoscopy.phantom.shading import render
from experiments.errors import UserError
from fsg_jax._files import lock
from fsg_jax.endoscopy.index.schema import natural_key

TINY = {"polyps": 3, "frames": 2, "width": 96, "height": 80, "workers": 1}


def make(out: Path, layout: str, **change) -> Path:
    assert make_phantom(Config(out=out, layout=layout, **(TINY | change)), progress=False)
    return out


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def corners_of(element: ElementTree.Element) -> list[int]:
    return [int(element.findtext(f"bndbox/{name}") or "") for name in ("xmin", "ymin", "xmax", "ymax")]


def real_colon_content(root: Path) -> list[tuple]:
    """Size, box, frame and depth map of every polyp in every frame, in natural order."""
    sizes = {row["unique_object_id"]: float(row["size [mm]"]) for row in table(root / "lesion_info.csv")}
    rows = []
    for path in sorted(root.glob("*_annotations/*.xml"), key=lambda path: natural_key(path.name)):
        name = f"{path.stem[:7]}_frames/{path.stem}"
        for lesion in ElementTree.parse(path).iter("object"):
            polyp = lesion.findtext("unique_id") or ""
            depth = (root / "depth/real_colon" / f"{name}.png").read_bytes()
            rows.append((polyp, sizes[polyp], corners_of(lesion), (root / f"{name}.jpg").read_bytes(), depth))
    return [row[1:] for row in sorted(rows, key=lambda row: natural_key(row[0]))]


def sun_content(root: Path) -> list[tuple]:
    rows = []
    for row in table(root / "metadata/sun_dataset_labels.csv"):
        annotation = root / f"sundatabase_positive_part1/annotation_txt/case{row['ID']}.txt"
        for line in annotation.read_text().splitlines():
            file_name, numbers = line.split()
            (image,) = root.glob(f"sundatabase_positive_part*/case{row['ID']}/{file_name}")
            depth = (root / "depth/sun" / image.relative_to(root)).with_suffix(".png").read_bytes()
            *corners, kind = map(int, numbers.split(","))
            assert kind == 0
            rows.append((float(row["Size"].removesuffix("mm")), corners, image.read_bytes(), depth))
    return rows


@pytest.mark.parametrize("two", [False, True])
def test_both_layouts_hold_the_same(tmp_path, two):
    real = make(tmp_path / "real", "real-colon", two_polyp_frames=two)
    content = real_colon_content(real)
    assert content == sun_content(make(tmp_path / "sun", "sun", two_polyp_frames=two))
    assert len(content) == TINY["polyps"] * TINY["frames"]
    objects = [len(list(ElementTree.parse(path).iter("object"))) for path in real.glob("*_annotations/*.xml")]
    assert max(objects) == 1 + two
    assert min(objects) == 0


def test_native_files_are_complete(tmp_path):
    real = make(tmp_path / "real", "real-colon")
    frames = {path.stem for path in real.glob("*_frames/*.jpg")}
    assert frames == {path.stem for path in real.glob("*_annotations/*.xml")}
    assert sum(int(row["num_frames"]) for row in table(real / "video_info.csv")) == len(frames)
    tree = ElementTree.parse(real / "001-001_annotations/001-001_3.xml").getroot()
    assert [child.tag for child in tree] == ["version_fmt", "folder", "filename", "source", "size", "object"]
    assert [child.tag for child in tree.find("object/bndbox")] == ["xmin", "xmax", "ymin", "ymax"]
    assert "synthetic" in tree.findtext("source/database")
    assert (tree.findtext("size/width"), tree.findtext("size/height")) == ("96", "80")
    sun = make(tmp_path / "sun", "sun", depth=False)
    cases = sorted(path.relative_to(sun).as_posix() for path in sun.glob("sundatabase_positive_part*/case*"))
    assert [case.removeprefix("sundatabase_positive_") for case in cases] == [
        "part1/case1",
        "part1/case2",
        "part2/case3",
    ]
    assert not (sun / "depth").exists()
    assert json.loads((sun / "SYNTHETIC.json").read_text())["synthetic"] is True


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path):
    one = digests(make(tmp_path / "one", "real-colon", workers=1))
    assert one == digests(make(tmp_path / "two", "real-colon", workers=2))
    assert one != digests(make(tmp_path / "other", "real-colon", seed=1))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(12, 150), seed=st.integers(0, 99))
def test_sizes_hold_every_group(count, seed):
    sizes = np.array(polyp_sizes(count, seed))
    assert ((sizes >= 2) & (sizes <= 20) & (sizes * 2 == np.round(sizes * 2))).all()
    found = np.array([(sizes <= 5).sum(), ((sizes > 5) & (sizes < 10)).sum(), (sizes >= 10).sum()])
    assert np.abs(found - count * np.array([0.5, 0.25, 0.25])).max() < 1
    config = Config(Path("x"), "sun", polyps=count, seed=seed, two_polyp_frames=True)
    assert [k for plan in plan_videos(config) for k in plan.polyps] == list(range(count))


@pytest.mark.parametrize(("size", "distance"), [(4.0, 12.0), (8.0, 30.0), (15.0, 45.0), (20.0, 30.0)])
def test_apparent_diameter_is_focal_length_times_size_over_distance(size, distance):
    camera = Camera(320, 256)
    scene = random_scene((size,), np.random.default_rng(3))
    ball = Ellipsoid(np.array([0.0, 0.0, -60.0 + distance]), np.eye(3), np.full(3, size / 2))
    scene = scene._replace(polyps=(Polyp((ball,), np.ones(3)),))
    picture = render(scene, camera, Pose(np.array([0.0, 0.0, -60.0]), np.eye(3)), np.random.default_rng(0))
    mask = picture.masks[0]
    silhouette = camera.focal * size / math.sqrt(distance**2 - size**2 / 4)  # of a ball, a little more than that
    for axis in (0, 1):
        assert mask.any(axis=axis).sum() == pytest.approx(silhouette, abs=1.5)
    assert mask.any(axis=0).sum() == pytest.approx(camera.focal * size / distance, rel=0.07, abs=1.5)
    assert picture.depth[mask].min() == pytest.approx(distance - size / 2, abs=0.02)


def test_boxes_are_tight_and_depth_is_in_mm(tmp_path):
    root = make(tmp_path / "set", "sun", polyps=6)
    assert json.loads((root / "depth/depth.json").read_text())["larger_is"] == "farther"
    for polyp in json.loads((root / "truth.json").read_text()):
        for frame in polyp["frames"]:
            image = Path(frame["image"]).with_suffix(".png")
            mask = read_image(root / "masks" / image) > 0
            xmin, ymin, xmax, ymax = frame["box"]
            assert mask.any(axis=0).nonzero()[0][[0, -1]].tolist() == [xmin, xmax - 1]
            assert mask.any(axis=1).nonzero()[0][[0, -1]].tolist() == [ymin, ymax - 1]
            assert mask.sum() == frame["pixels"]
            depth = read_image(root / "depth/sun" / image) * DEPTH_UNIT_MM
            assert depth.shape == mask.shape
            nearest = depth[mask].min()
            assert nearest < frame["distance_mm"] < 1.8 * (nearest + polyp["size_mm"])


def features(root: Path) -> np.ndarray:
    """Columns: log of size, box area, median depth in the box and mean brightness around the box."""
    rows = []
    for polyp in json.loads((root / "truth.json").read_text()):
        for frame in polyp["frames"]:
            path, (xmin, ymin, xmax, ymax) = frame["image"], frame["box"]
            depth = read_image((root / "depth/real_colon" / path).with_suffix(".png"))
            grey = read_image(root / path).mean(axis=-1)
            pad_x, pad_y = (xmax - xmin) // 2 + 1, (ymax - ymin) // 2 + 1
            around = np.zeros(grey.shape, bool)
            around[max(ymin - pad_y, 0) : ymax + pad_y, max(xmin - pad_x, 0) : xmax + pad_x] = True
            around[ymin:ymax, xmin:xmax] = False
            area, median = (xmax - xmin) * (ymax - ymin), np.median(depth[ymin:ymax, xmin:xmax])
            rows.append(np.log([polyp["size_mm"], area, median, grey[around & (grey > 12)].mean()]))
    return np.array(rows)


def test_size_needs_more_than_the_area_of_the_box(tmp_path):
    root = make(tmp_path / "set", "real-colon", polyps=24, frames=2, width=128, height=104)
    rows = features(root)

    def explained(*columns: int) -> float:
        design = np.column_stack([np.ones(len(rows)), rows[:, columns]])
        residual = rows[:, 0] - design @ np.linalg.lstsq(design, rows[:, 0])[0]
        return float(1 - residual.var() / rows[:, 0].var())

    assert 0.25 < explained(1) < 0.7
    assert explained(1, 2) > 0.9
    assert explained(1, 3) > explained(1) + 0.12


@pytest.mark.parametrize("layout", ["real-colon", "sun"])
def test_damage_is_listed_and_leaves_the_rest_alone(tmp_path, layout):
    whole = digests(make(tmp_path / "whole", layout))
    root = make(tmp_path / "broken", layout, broken=len(DAMAGES) + 1)
    listed = json.loads((root / "SYNTHETIC.json").read_text())["broken"]
    assert [entry["kind"] for entry in listed] == [*DAMAGES, next(iter(DAMAGES))]
    after = digests(root)
    images = {name for name in after if name.endswith((".jpg", ".png"))}
    missing = {entry["image"] for entry in listed if entry["kind"] == "missing JPEG"}
    assert images - set(whole) == {entry["image"] for entry in listed} - missing
    assert all(after[name] == whole[name] for name in whole if name in images)
    for entry in listed:
        assert (root / entry["annotation"]).is_file()
        check_damage(root, entry)


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def check_damage(root: Path, entry: dict[str, str]) -> None:
    image = root / entry["image"]
    text = (root / entry["annotation"]).read_text()
    match entry["kind"]:
        case "truncated JPEG" | "no JPEG but text":
            with pytest.raises(OSError, match=r"truncated|cannot identify"):
                read_image(image)
        case "zero-byte JPEG":
            assert image.stat().st_size == 0
        case "missing JPEG":
            assert not image.exists()
        case "greyscale JPEG":
            assert read_image(image).ndim == 2
        case "JPEG of another size":
            assert read_image(image).shape == (20, 24, 3)
        case "annotation cut in half":
            assert any(not line.endswith((",0", ">")) for line in text.splitlines())
            assert "</annotation>" not in text
        case "corners that are no numbers":
            assert "left" in text


def test_folder_is_never_overwritten(tmp_path):
    root = make(tmp_path / "set", "sun")
    before = digests(root)
    config = Config(out=root, layout="sun", **TINY)
    assert not make_phantom(config, progress=False)
    assert not make_phantom(dataclasses.replace(config, workers=2), progress=False)
    with pytest.raises(UserError, match="differs in seed: 0 there, 1 now"):
        make_phantom(dataclasses.replace(config, seed=1), progress=False)
    assert digests(root) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"new, empty or a phantom, found .*other without a note of ours"):
        make_phantom(dataclasses.replace(config, out=tmp_path / "other"), progress=False)
    with pytest.raises(UserError, match=r"found .*notes.txt without a note of ours"):
        make_phantom(dataclasses.replace(config, out=tmp_path / "other/notes.txt"), progress=False)
    (root / "SYNTHETIC.json").write_text("{")
    with pytest.raises(UserError, match=r"without a note of ours \(ValueError"):
        make_phantom(config, progress=False)


def test_folder_is_there_whole_or_not_at_all(tmp_path):
    out, left = tmp_path / "set", tmp_path / "set.1.tmp"
    (left / "case1").mkdir(parents=True)
    (left / "case1/old.jpg").write_bytes(b"of a killed run")
    (tmp_path / "set.1.2.tmp").mkdir()  # of a process that makes set.1
    with pytest.raises(FileExistsError), new_folder(out) as folder:
        [(folder / "case1").mkdir() for _ in range(1 if left.exists() else 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["set.1.2.tmp"]
    (tmp_path / "set.1.2.tmp").rmdir()
    out.mkdir()
    with new_folder(out) as folder:
        (folder / "all").write_text("done")
        assert list(out.iterdir()) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "all"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    with lock(tmp_path / ".set.lock"):
        with pytest.raises(UserError, match="found another process making"), new_folder(tmp_path / "set"):
            pass
        assert (tmp_path / ".set.lock").exists()
    with new_folder(tmp_path / "set"):
        pass


def test_censored_sizes_only_where_the_size_is_as_large(tmp_path):
    root = make(tmp_path / "set", "sun", polyps=12, frames=1, censor=True, depth=False, seed=2)
    written = [row["Size"] for row in table(root / "metadata/sun_dataset_labels.csv")]
    assert written == [f"{size:g}mm" if size < 15 else "15mm-" for size in polyp_sizes(12, 2)]
    assert "15mm-" in written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"polyps": 0}, "--polyps: expected an integer >= 1, found 0"),
        ({"frames": 0}, "--frames: expected an integer >= 1, found 0"),
        ({"width": 10}, "--width: expected an integer >= 64, found 10"),
        ({"broken": -1}, "--broken: expected an integer >= 0, found -1"),
        (
            {"polyps": 1, "two_polyp_frames": True},
            "--polyps, with --two-polyp-frames: expected an integer >= 2, found 1",
        ),
        ({"missing_histology": 1.5}, r"--missing-histology: expected a probability in \[0, 1\], found 1.5"),
        ({"missing_histology": float("nan")}, "--missing-histology: expected a probability"),
        ({"censor": True}, "--layout, with --censor: expected 'sun', found 'real-colon'"),
    ],
)
def test_options_out_of_range(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Config(out=tmp_path, layout="real-colon", **change)


def test_command(tmp_path):
    options = ["--layout", "sun", "--polyps", "1", "--frames", "1", "--width", "64", "--height", "64", "--no-depth"]
    command = [sys.executable, "-m", "experiments.endoscopy.phantom", "--out", str(tmp_path / "set"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    assert done.stdout == f"{tmp_path / 'set'}: made; synthetic, 1 polyps, sun\n"
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 1
