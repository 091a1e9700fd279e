"""Labels of the phantom: read back as they were written, partly to be seen, and without effect on all else."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.endoscopy.phantom.camera import Camera, pose_at, random_track
from experiments.endoscopy.phantom.colon import Scene, random_scene
from experiments.endoscopy.phantom.lesion_kinds import (
    HISTOLOGY_NOISE,
    SITE_NOISE,
    chances_of,
    draw_lesions,
    hidden_polyps,
    place_of,
)
from experiments.endoscopy.phantom.native_layouts import SUN_LABELS, RealColon
from experiments.endoscopy.phantom.phantom_plan import Config, Lesion, Video, polyp_sizes
from experiments.endoscopy.phantom.phantom_set import make_phantom
from experiments.endoscopy.phantom.shading import render
from fsg_jax.endoscopy.index.label_codes import HISTOLOGIES, SITES
from fsg_jax.endoscopy.index.schema import read_index
from fsg_jax.endoscopy.readers.indexing import build_index
from fsg_jax.endoscopy.readers.real_colon import open_real_colon
from fsg_jax.endoscopy.readers.reports import Note
from fsg_jax.endoscopy.readers.sun import open_sun

TINY = {"polyps": 8, "frames": 1, "width": 64, "height": 64, "workers": 1, "depth": False}


def make(out: Path, layout: str, **change) -> Path:
    make_phantom(Config(out=out, layout=layout, **(TINY | change)), progress=False)
    return out


def truth(root: Path) -> list[dict]:
    return json.loads((root / "truth.json").read_text())


def written(root: Path) -> list[tuple[str | None, str]]:
    return [(polyp["written_histology"], polyp["written_site"]) for polyp in truth(root)]


def pictures(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.jpg")}


def indexed(layout, out: Path) -> tuple[list[tuple[str | None, str | None]], dict[str, int]]:
    """Labels of the polyps in the order of the set, and the counts of the notes."""
    counts = build_index(layout, out)
    rows = read_index(out)[0].to_pylist()
    return list({row["polyp_id"]: (row["histology"], row["site"]) for row in rows}.values()), counts["notes"]


def test_the_readers_find_what_was_written_in_either_layout(tmp_path):
    real = make(tmp_path / "real", "real-colon", missing_histology=0.5)
    sun = make(tmp_path / "sun", "sun", missing_histology=0.5)
    assert written(real) == written(sun)
    assert sum(histology is None for histology, _ in written(real)) == 4
    found = (
        indexed(open_real_colon(real), tmp_path / "1"),
        indexed(open_sun(sun, labels=sun / SUN_LABELS), tmp_path / "2"),
    )
    for labels, notes in found:
        assert labels == written(real)
        assert notes.pop(str(Note.LABEL_SPELLING), 0) <= 2
        assert notes == {str(Note.LABEL_MISSING): 4}
    whole = make(tmp_path / "whole", "sun")
    assert pictures(whole) == pictures(sun)
    assert all(b is None or a == b for (a, _), (b, _) in zip(written(whole), written(sun), strict=True))
    keys = ("size_mm", "histology", "site", "frames")
    assert [[p[key] for key in keys] for p in truth(whole)] == [[p[key] for key in keys] for p in truth(sun)]


def test_sites_are_written_in_other_spellings_too():
    labels = (Lesion("AD", "cecum", "AD", "cecum"), Lesion("AD", "cecum", "NO POLYP", "transverse"))
    video = Video(0, (2, 3), (4.0, 5.0), (), labels)
    rows = RealColon().tables([video])["lesion_info.csv"]
    assert [row[3:] for row in rows[1:]] == [
        ("caecum", "Tubular adenoma", "AD"),
        ("transverse", "Normal mucosa", "NO POLYP"),
    ]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_hidden_polyps(share):
    def hidden(seed: int = 0, missing: float = share) -> frozenset[int]:
        return hidden_polyps(Config(Path("x"), "sun", polyps=40, seed=seed, missing_histology=missing))

    assert len(hidden()) == 40 * share
    assert hidden() == hidden()
    assert hidden(missing=share / 2) <= hidden()
    if 0 < share < 1:
        assert len({hidden(seed) for seed in range(5)}) == 5


def sample(count: int) -> list[tuple[Lesion, Scene]]:
    config = Config(Path("x"), "sun", polyps=count)
    found = []
    for number, size in enumerate(polyp_sizes(count, 0)):
        scene = random_scene((size,), np.random.default_rng([number, 1]))
        (lesion,), dressed = draw_lesions(Video(number, (number,), (size,)), scene, config)
        assert all(a is b for a, b in zip(dressed._replace(polyps=scene.polyps), scene, strict=True))
        assert dressed.polyps[0].parts is scene.polyps[0].parts
        found.append((lesion, dressed))
    return found


def test_labels_are_seen_in_part():
    found = sample(300)
    assert {lesion.histology for lesion, _ in found} == set(HISTOLOGIES)
    assert {lesion.site for lesion, _ in found} == set(SITES)
    same = np.array([(v.histology == v.written_histology, v.site == v.written_site) for v, _ in found])
    np.testing.assert_allclose(1 - same.mean(0), [0.75 * HISTOLOGY_NOISE, SITE_NOISE], atol=0.04)
    steps = [abs(SITES.index(v.site) - SITES.index(v.written_site)) for v, _ in found]
    assert set(steps) == {0, 1}
    looks = np.array([[np.log(p.pits), np.log(p.ridges), *np.log(p.tint[1:])] for p in (s.polyps[0] for _, s in found)])
    looks = (looks - looks.mean(0)) / looks.std(0)
    distances = ((looks[:, None] - looks) ** 2).sum(-1) + 1e9 * np.eye(len(looks))
    nearest = np.argsort(distances, axis=1)[:, :7]
    true = [lesion.histology for lesion, _ in found]
    right = np.mean(
        [Counter(true[i] for i in row).most_common(1)[0][0] == own for row, own in zip(nearest, true, strict=True)]
    )
    assert max(Counter(true).values()) / len(true) + 0.2 < right < 0.95
    places = [place_of(scene) for _, scene in found]
    assert np.histogram(places, 4, (0, 1))[0].min() > 0.7 * len(places) / 4
    assert np.corrcoef(places, [SITES.index(lesion.site) for lesion, _ in found])[0, 1] > 0.95
    blue = [scene.cast[2] for _, scene in found]
    assert 0.3 < np.corrcoef(blue, [SITES.index(lesion.written_site) for lesion, _ in found])[0, 1] < 0.9


def test_chances_follow_size_and_site():
    small, large = chances_of(3.0, 3), chances_of(15.0, 3)
    assert small.sum() == pytest.approx(1)
    hp, ssl, none = (HISTOLOGIES.index(name) for name in ("HP", "SSL", "NO POLYP"))
    assert small[hp] > 2 * large[hp]
    assert small[none] > 2 * large[none]
    assert chances_of(5.0, SITES.index("cecum"))[ssl] > 2 * chances_of(5.0, SITES.index("rectum"))[ssl]
    assert chances_of(5.0, SITES.index("rectum"))[hp] > chances_of(5.0, SITES.index("cecum"))[hp]


def test_only_the_polyp_looks_otherwise():
    camera, rng = Camera(96, 80), np.random.default_rng(5)
    scene = random_scene((12.0,), rng)
    pose = pose_at(random_track((12.0,), camera, rng), scene, 0.5)
    _, dressed = draw_lesions(Video(0, (0,), (12.0,)), scene, Config(Path("x"), "sun", polyps=1))
    before, after = (render(s, camera, pose, np.random.default_rng(0)) for s in (scene, dressed))
    np.testing.assert_array_equal(before.masks, after.masks)
    np.testing.assert_array_equal(before.depth, after.depth)
    near = np.pad(before.masks[0], 1)
    near = np.logical_or.reduce(
        [near[i : i + 80, j : j + 96] for i in range(3) for j in range(3)]
    )  # the blur reaches 1
    changed = (before.rgb != after.rgb).any(-1)
    assert near.sum() > 100
    assert not changed[~near].any()
    assert changed[before.masks[0]].mean() > 0.9
