"""A tiny REAL-Colon and a tiny SUN in their native layouts, with the same kind of content."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
Corners = tuple[object, object, object, object]

REAL_SIZES = {"001-001_1": "4", "001-001_2": "6.5", "002-010_1": "12"}
SUN_SIZES = {"1": "3mm", "2": "8mm", "10": "15mm-"}


def write_image(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> None:
    """A smooth picture with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[1], : size[0]]
    planes = [x * 3, y * 4, (x + y) * 2]
    pixels = np.stack(planes, axis=-1) + np.random.default_rng(seed).integers(0, 20, (size[1], size[0], 3))
    Image.fromarray((pixels % 256).astype(np.uint8)).convert(mode).save(path, "JPEG", quality=90)


def xml_text(objects: Iterable[tuple[str, Corners]], size: tuple[object, object] = (WIDTH, HEIGHT)) -> str:
    """An annotation of REAL-Colon; corners are xmin, ymin, xmax, ymax."""
    lesions = "".join(
        f"<object><name>lesion</name><unique_id>{polyp}</unique_id><box_id>{box}</box_id><bndbox><xmin>{xmin}</xmin>"
        f"<xmax>{xmax}</xmax><ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox></object>"
        for box, (polyp, (xmin, ymin, xmax, ymax)) in enumerate(objects)
    )
    return (
        "<annotation><version_fmt>1.0</version_fmt><folder/><filename/><source><database>REAL-Colon</database>"
        f"<release>v1.0</release></source><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth>"
        f"</size>{lesions}</annotation>"
    )


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_lesions(root: Path, sizes: Mapping[str, str]) -> None:
    rows = [(polyp, polyp.split("_")[0], size, "rectum", "AD") for polyp, size in sizes.items()]
    header = ("unique_object_id", "unique_video_name", "size [mm]", "site", "histology_class")
    write_csv(root / "lesion_info.csv", header, rows)


def write_real_colon(root: Path, *, frames: int = 6) -> Path:
    """Video 001-001 with two polyps, both in frame 3; 002-010 with one; frame 0 of each without any."""
    root.mkdir(parents=True, exist_ok=True)
    write_lesions(root, REAL_SIZES)
    header = ("unique_video_name", "age", "num_frames", "num_lesions")
    write_csv(root / "video_info.csv", header, [("001-001", 60, frames, 2), ("002-010", 55, frames, 1)])
    for video in ("001-001", "002-010"):
        (root / f"{video}_annotations").mkdir()
        for t in range(frames):
            objects = [(f"{video}_1", (4 + t, 6, 30 + t, 28))] if t else []
            if video == "001-001" and t == 3:
                objects.append((f"{video}_2", (36, 20, 60, 44)))
            elif video == "001-001" and t > 3:
                objects = [(f"{video}_2", (30, 20 - t, 60, 44))]
            (root / f"{video}_annotations" / f"{video}_{t}.xml").write_text(xml_text(objects))
            write_image(root / f"{video}_frames" / f"{video}_{t}.jpg", seed=t)
    return root


def sun_name(case: str, number: int) -> str:
    return f"case_M_20181001100941_0U62372100109341_1_005_001-{case}_a2_ayy_image{number:04d}.jpg"


def sun_lines(case: str, frames: int) -> list[str]:
    return [f"{sun_name(case, t)} {3 + t},5,{33 + t},30,0" for t in range(1, frames + 1)]


def write_sun(root: Path, *, layout: str = "parts", frames: int = 4) -> Path:
    """Cases 1, 2 and 10; `layout` is ``parts`` (as distributed), ``flat`` (cases under the root) or ``renamed``."""
    write_csv(
        root / "metadata" / "sun_dataset_labels.csv",
        ("ID", "Size", "Location"),
        [(k, v, "") for k, v in SUN_SIZES.items()],
    )
    part = root / "sundatabase_positive_part1" if layout == "parts" else root
    (part / "annotation_txt").mkdir(parents=True)
    for case in SUN_SIZES:
        (part / "annotation_txt" / f"case{case}.txt").write_text("\n".join(sun_lines(case, frames)) + "\n")
        for t in range(1, frames + 1):
            write_image(sun_image(root, case, t, layout), seed=t)
    return root


def sun_image(root: Path, case: str, number: int, layout: str = "parts") -> Path:
    """Where `write_sun` puts a frame; case 10 lies in the second part."""
    if layout == "renamed":
        return root / "renamed" / f"case{case}" / f"image_{number:03d}.jpg"
    part = f"sundatabase_positive_part{2 if case == '10' else 1}" if layout == "parts" else "."
    return root / part / f"case{case}" / sun_name(case, number)
