"""The reader of Kvasir-SEG in both layouts, and on the real one where it is at hand."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsg_jax.endoscopy.frames.source import FrameSource
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.kvasir import open_kvasir, read_kvasir
from fsg_jax.endoscopy.readers.reports import Note, Reason

# Of a frame of 80x60 pixels: id, boxes.
BOXES = {"a2": [[10, 12, 40, 36]], "a10": [[0, 0, 20, 15], [60, 45, 80, 60]], "ß": [[4, 3, 77, 58]]}


def save(path: Path, size: tuple[int, int], boxes=None):
    """A frame, or with `boxes` of an 80x60 frame the mask of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if boxes is None:
        pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    else:
        pixels = np.zeros((60, 80), np.uint8)
        for xmin, ymin, xmax, ymax in boxes:
            pixels[ymin:ymax, xmin:xmax] = 255
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, quality=95)


def distributed(root: Path, size=(80, 60)) -> Path:
    listed = {}
    for name, boxes in BOXES.items():
        save(root / "images" / f"{name}.jpg", size)
        save(root / "masks" / f"{name}.jpg", size, boxes)
        found = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True), label="polyp") for box in boxes]
        listed[name] = {"width": 80, "height": 60, "bbox": found}
    (root / "kavsir_bboxes.json").write_text(json.dumps(listed))
    return root


def resized(root: Path, size=(40, 40), order=1) -> Path:
    lines = []
    for number, (name, boxes) in enumerate(BOXES.items()):
        save(root / "test" / "images" / f"{number}.jpg", size)
        save(root / "test" / "masks" / f"{number}.jpg", size, boxes)
        lines.append(f'test/images/{number}.jpg,test,{name},80,60,{len(boxes)},"{boxes}"')
    header = "file,split,kvasir_id,orig_w,orig_h,n_boxes,boxes"
    (root / "index.csv").write_text("\n".join([header, *lines[::order], ""]), encoding="utf-8")
    return root


def edit_json(root: Path, change) -> None:
    path = root / "kavsir_bboxes.json"
    listed = json.loads(path.read_text())
    change(listed)
    path.write_text(json.dumps(listed))


def reasons(events):
    return [(event.item, event.reason) for event in events]


def box_of(row):
    return [row[name] for name in ("xmin", "ymin", "xmax", "ymax")]


def test_as_distributed(tmp_path):
    table, events = read_kvasir(distributed(tmp_path))
    rows = table.to_pylist()
    assert events == []
    assert [row["polyp_id"] for row in rows] == ["a2_1", "a10_1", "a10_2", "ß_1"]
    assert [box_of(row) for row in rows] == [box for boxes in BOXES.values() for box in boxes]
    assert rows[1] == {
        **{"dataset": "kvasir_seg", "video_id": "a10", "patient_id": "a10", "polyp_id": "a10_1", "frame_id": "a10"},
        **{"image_path": "images/a10.jpg", "mask_path": "masks/a10.jpg", "width": 80, "height": 60},
        **{"xmin": 0, "ymin": 0, "xmax": 20, "ymax": 15, "size_mm": None, "size_censored": False, "synthetic": False},
        **{"histology": None, "site": None},
    }


def test_boxes_are_scaled_outwards_with_a_resized_frame(tmp_path):
    rows = read_kvasir(resized(tmp_path))[0].to_pylist()
    assert [box_of(row) for row in rows] == [[5, 8, 20, 24], [0, 0, 10, 10], [30, 30, 40, 40], [2, 2, 39, 39]]
    assert {(row["width"], row["height"]) for row in rows} == {(40, 40)}
    assert [row["mask_path"] for row in rows] == [f"test/masks/{i}.jpg" for i in (0, 1, 1, 2)]


def test_order_of_lines_changes_nothing(tmp_path):
    assert read_kvasir(resized(tmp_path / "a"))[0] == read_kvasir(resized(tmp_path / "b", order=-1))[0]


def test_an_index_folder_can_be_built_and_its_frames_read(tmp_path):
    root = distributed(tmp_path / "data", size=(40, 30))
    (root / "SYNTHETIC.json").write_text("{}")
    (root / "masks" / "ß.jpg").unlink()
    (root / "images" / "a2.jpg").write_bytes(b"")
    summary = build_index(open_kvasir(root), tmp_path / "index")
    assert (summary["rows"], summary["frames"], summary["synthetic"]) == (3, 2, True)
    assert summary["dropped"] == {"zero-byte frame image": 1}
    assert summary["notes"] == {"frame without a usable mask": 1}
    table, roots = read_index(tmp_path / "index")
    assert table.column("synthetic").to_pylist() == [True] * 3
    example = FrameSource(table, roots, 80)[0]
    np.testing.assert_allclose(example["box"], [0, 0, 20, 80 * 8 / 30], rtol=1e-6)
    assert np.isnan(example["size_mm"])


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([5, 5, 5, 9], Reason.EMPTY_BOX),
        ([9, 5, 5, 9], Reason.SWAPPED),
        ([80, 5, 90, 9], Reason.OUTSIDE),
        (["x", 5, 9, 9], Reason.COORDINATE),
        ([None, 5, 9, 9], Reason.COORDINATE),
        ([-5, 0, 20, 15], Note.CLIPPED),
        ([0.4, 0, 20, 15], Note.ROUNDED),
    ],
)
def test_one_bad_box_of_two(tmp_path, box, reason):
    def change(listed):
        listed["a10"]["bbox"][0] |= dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))

    edit_json(distributed(tmp_path), change)
    table, events = read_kvasir(tmp_path)
    kept = reason in (Note.CLIPPED, Note.ROUNDED)
    polyps = ["a2_1", *(["a10_1"] if kept else []), "a10_2", "ß_1"]
    assert table.column("polyp_id").to_pylist() == polyps
    assert ("a10_1", reason) in reasons(events)
    assert all(event.file == "images/a10.jpg" for event in events)


def test_frames_that_cannot_be_used(tmp_path):
    root = distributed(tmp_path)
    edit_json(root, lambda listed: listed.update(gone=listed["a2"], bare=listed["a2"] | {"bbox": []}))
    edit_json(root, lambda listed: listed.update(flat=listed["a2"] | {"height": 0}, part={"width": 3}, text="boxes"))
    edit_json(root, lambda listed: listed.update(huge=listed["a2"] | {"width": float("inf")}))
    save(root / "images" / "extra.jpg", (80, 60))
    (root / "images" / "a10.jpg").write_bytes((root / "images" / "a10.jpg").read_bytes()[:700])
    Image.open(root / "images" / "a2.jpg").convert("L").save(root / "images" / "a2.jpg")
    table, events = read_kvasir(root)
    assert table.column("polyp_id").to_pylist() == ["ß_1"]
    expected = {
        ("a2", Reason.NOT_RGB),
        ("a10", Reason.TRUNCATED_FRAME),
        ("bare", Note.NO_ANNOTATION),
        ("extra", Note.NO_ANNOTATION),
        ("flat", Reason.MALFORMED_LINE),
        ("huge", Reason.MALFORMED_LINE),
        ("gone", Reason.MISSING_FRAME),
        ("part", Reason.MALFORMED_LINE),
        ("text", Reason.MALFORMED_LINE),
    }
    assert sorted(reasons(events)) == sorted(expected)


def test_masks_that_cannot_be_used_are_left_out_of_the_index(tmp_path):
    root = distributed(tmp_path)
    save(root / "masks" / "a2.jpg", (80, 60), [])
    save(root / "masks" / "a10.jpg", (40, 30), BOXES["a10"])
    (root / "masks" / "ß.jpg").write_bytes(b"no image")
    table, events = read_kvasir(root)
    assert table.column("mask_path").to_pylist() == [None] * 4
    assert reasons(events) == [(name, Note.NO_MASK) for name in BOXES]


def test_a_png_mask_is_found(tmp_path):
    root = distributed(tmp_path)
    (root / "masks" / "a2.jpg").unlink()
    save(root / "masks" / "a2.png", (80, 60), BOXES["a2"])
    assert read_kvasir(root)[0].column("mask_path")[0].as_py() == "masks/a2.png"


@pytest.mark.parametrize(("shift", "noted"), [(4, False), (5, True)])
def test_boxes_off_the_mask_are_noted_above_five_percent(tmp_path, shift, noted):
    root = distributed(tmp_path)
    save(root / "masks" / "a2.jpg", (80, 60), [[10 + shift, 12, 40, 36]])
    table, events = read_kvasir(root)
    assert len(table) == 4
    assert reasons(events) == ([("a2", Note.BOX_AND_MASK)] if noted else [])


def test_bad_lines_of_the_csv(tmp_path):
    with (resized(tmp_path) / "index.csv").open("a", encoding="utf-8") as file:
        file.write('test/images/0.jpg,test,a2,80,60,1,"[[1, 2, 3, 4]]"\n')
        file.write('test/images/0.jpg,test,b,80,60,1,"[[1, 2, 3]]"\n')
        file.write('test/images/0.jpg,test,c,wide,60,1,"[[1, 2, 3, 4]]"\n')
        file.write('../images/0.jpg,test,d,80,60,1,"[[1, 2, 3, 4]]"\n')
    table, events = read_kvasir(tmp_path)
    assert len(table) == 4
    lines = [(f"line {n}", Reason.MALFORMED_LINE) for n in (5, 6, 7)]
    assert reasons(events) == [*lines, ("d", Reason.FRAME_PATH)]


def test_folders_without_kvasir(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_kvasir(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"expected index.csv, or kavsir_bboxes.json"):
        read_kvasir(tmp_path)
    for text in ("[1]", "{", "null"):
        (tmp_path / "kavsir_bboxes.json").write_text(text)
        with pytest.raises(ValueError, match=r"kavsir_bboxes\.json is damaged: expected (a JSON object|JSON), found"):
            read_kvasir(tmp_path)


@pytest.mark.skipif("FSG_KVASIR" not in os.environ, reason="FSG_KVASIR is not set to a folder of Kvasir-SEG")
@pytest.mark.slow
def test_real(tmp_path):
    root = Path(os.environ["FSG_KVASIR"])
    table, events = read_kvasir(root)
    assert len(set(table.column("image_path").to_pylist())) == 1000
    assert len(table) == 1071
    assert table.column("mask_path").null_count == 0
    assert Counter(event.reason for event in events)[Note.BOX_AND_MASK] == 17
    assert not {event.reason for event in events} - {Note.BOX_AND_MASK}
    _agree_with_the_masks(table, root, {event.item for event in events})


def _agree_with_the_masks(table, root, noted):
    """The box of a frame with one polyp is that of its mask to a few pixels, in the pixels of the stored frame."""
    rows = [row for row in table.to_pylist() if row["frame_id"] not in noted][::10]
    lone = Counter(row["frame_id"] for row in table.to_pylist())
    for row in rows:
        if lone[row["frame_id"]] == 1:
            with Image.open(root / row["mask_path"]) as image:
                y, x = np.nonzero(np.asarray(image.convert("L")) > 127)
            edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert np.abs(edges - box_of(row)).max() <= 0.05 * 352 + 1
