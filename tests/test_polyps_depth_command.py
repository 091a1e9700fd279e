"""The depth command, with small models of the real kinds and random weights."""

import numpy as np
import pytest
from PIL import Image

from experiments.endoscopy.depth import main
from experiments.errors import UserError
from fsg_jax.endoscopy.frames.depth_maps import DEPTH_INFO, DepthInfo, check_depth, depth_path, read_depth_info
from fsg_jax.endoscopy.index.schema import from_rows, write_index
from tests.polyp_frames import make_set, row
from tests.torchvision_operators import declare_missing_operators

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
declare_missing_operators()
transformers = pytest.importorskip("transformers")

SHAPES = ((64, 48), (64, 48), (40, 60), (64, 48), (64, 48))
BACKBONE = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _dpt():
    config = transformers.DPTConfig(
        **BACKBONE,
        intermediate_size=32,
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        use_auxiliary_head=False,
    )
    return transformers.DPTForDepthEstimation(config)


def _depth_anything(kind):
    backbone = transformers.Dinov2Config(
        **BACKBONE, mlp_ratio=2, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


MODELS = {"dpt": _dpt, "relative": lambda: _depth_anything("relative"), "metric": lambda: _depth_anything("metric")}


def _save(folder, network, **options):
    torch.manual_seed(0)
    network = network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    network.save_pretrained(folder)
    processor = transformers.DPTImageProcessorPil(size={"height": 32, "width": 32}, ensure_multiple_of=8, **options)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, network in MODELS.items():
        _save(folder / name, network, keep_aspect_ratio=name == "relative")
    return folder


@pytest.fixture
def index(tmp_path):
    table, roots = make_set(tmp_path / "frames", SHAPES)
    write_index(table, tmp_path / "index.parquet", {name: str(root) for name, root in roots.items()})
    return table


def run(tmp_path, model, *options):
    main([str(tmp_path / "index.parquet"), "--model", str(model), "--out", str(tmp_path / "depth"), *options])


def maps(tmp_path):
    return {path.name: np.asarray(Image.open(path)) for path in sorted((tmp_path / "depth").rglob("*.png"))}


@pytest.mark.parametrize(("name", "larger_is"), [("dpt", "nearer"), ("relative", "nearer"), ("metric", "farther")])
def test_every_frame_gets_the_models_map(tmp_path, index, models, capsys, name, larger_is):
    run(tmp_path, models / name, "--batch-size", "2")
    assert "5 maps made, 0 there already, 0 failed" in capsys.readouterr().out
    assert check_depth(index, tmp_path / "depth") == DepthInfo(name, larger_is, synthetic=True)
    found = maps(tmp_path)
    assert [values.shape for values in found.values()] == [(height, width) for width, height in SHAPES]
    network = transformers.AutoModelForDepthEstimation.from_pretrained(models / name).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(models / name, backend="pil")
    with Image.open(tmp_path / "frames/case1/frame_2.jpg") as image, torch.inference_mode():
        raw = network(**processor(images=image, return_tensors="pt")).predicted_depth[None]
        raw = torch.nn.functional.interpolate(raw, (60, 40), mode="bicubic")[0, 0].numpy()
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    assert expected.std() > 0.05
    np.testing.assert_allclose(found["frame_2.png"] / 65535, expected, atol=2e-4)


def test_a_second_run_makes_only_what_is_missing(tmp_path, index, models, capsys):
    run(tmp_path, models / "dpt", "--limit", "2")
    assert "2 maps made, 0 there already, 0 failed, 3 left by --limit" in capsys.readouterr().out
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "depth").rglob("*.png")}
    assert len(first) == 2
    run(tmp_path, models / "dpt")
    assert "3 maps made, 2 there already, 0 failed" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    run(tmp_path, models / "dpt")
    assert "0 maps made, 5 there already, 0 failed" in capsys.readouterr().out


def test_a_map_does_not_depend_on_the_batch(tmp_path, index, models):
    run(tmp_path, models / "dpt", "--batch-size", "1")
    alone = maps(tmp_path)
    for path in (tmp_path / "depth").rglob("*.png"):
        path.unlink()
    run(tmp_path, models / "dpt", "--batch-size", "4")
    for name, values in maps(tmp_path).items():
        np.testing.assert_allclose(values, alone[name].astype(float), atol=20)


def test_large_frames_have_smaller_maps(tmp_path, index, models):
    run(tmp_path, models / "dpt", "--longest-side", "30")
    assert {name: values.shape for name, values in maps(tmp_path).items()}["frame_2.png"] == (30, 20)


def test_frames_that_cannot_be_read_are_named_and_the_others_mapped(tmp_path, index, models, capsys):
    (tmp_path / "frames/case1/frame_1.jpg").write_bytes(b"")
    Image.new("RGB", (10, 10)).save(tmp_path / "frames/case1/frame_2.jpg")
    with pytest.raises(UserError, match=r"(?s)2 frames have no map:.*frame_1\.jpg.*frame_2\.jpg: .*found 10x10"):
        run(tmp_path, models / "dpt")
    assert "3 maps made, 0 there already, 2 failed" in capsys.readouterr().out
    assert len(maps(tmp_path)) == 3


def test_a_folder_of_another_model_is_refused(tmp_path, index, models):
    run(tmp_path, models / "dpt", "--limit", "1")
    with pytest.raises(UserError, match=r"found maps of another in .*: model is 'dpt' there, 'metric' now"):
        run(tmp_path, models / "metric")
    with pytest.raises(UserError, match="larger_is is 'nearer' there, 'farther' now"):
        run(tmp_path, models / "dpt", "--larger-is", "farther")
    (tmp_path / "depth" / DEPTH_INFO).unlink()
    with pytest.raises(UserError, match=r"depth\.json: expected a file that says what made the maps there, found none"):
        run(tmp_path, models / "dpt")


def test_real_frames_beside_made_up_ones_leave_the_maps_marked(tmp_path, index, models):
    run(tmp_path, models / "dpt")
    real = from_rows([row("case1/frame_0.jpg", SHAPES[0], (0, 0, 9, 9), dataset="real", synthetic=False)])
    write_index(real, tmp_path / "index.parquet", {"real": str(tmp_path / "frames")})
    run(tmp_path, models / "dpt")
    assert depth_path(tmp_path / "depth", "real", "case1/frame_0.jpg").exists()
    assert read_depth_info(tmp_path / "depth").synthetic


def test_models_that_cannot_be_loaded(tmp_path, index):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a depth-estimation model, found the folder"):
        run(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match=r"there is no such folder"):
        run(tmp_path, tmp_path / "absent")
    assert not (tmp_path / "depth").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path, index, models):
    with pytest.raises(UserError, match="--device: expected cpu where torch finds no CUDA device, found cuda"):
        run(tmp_path, models / "dpt", "--device", "cuda")


@pytest.mark.parametrize("option", ["--batch-size", "--longest-side", "--limit", "--workers"])
def test_bad_numbers(tmp_path, index, models, option):
    with pytest.raises(ValueError, match=f"{option}: expected an integer >= 1, found 0"):
        run(tmp_path, models / "dpt", option, "0")
