"""Backbones that are neither a plain ViT, ResNet, ConvNeXt nor Swin: their sizes, maps and exports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers import called
from torch import Tensor

from sslkit.core.config.build import build_pretrain
from sslkit.core.errors import UserError
from sslkit.methods import card, load
from sslkit.methods.base import Info
from sslkit.methods.frequency.mfm import MFM
from sslkit.models.encoder import Encoder
from sslkit.models.factory import native_size
from sslkit.models.input_size import nearest_size, outline, takes
from sslkit.models.weights import load_encoder, write_encoder
from sslkit.training.pretrain.auto import resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import backbones as table

CPU = torch.device("cpu")


NEWER = pytest.mark.skipif(
    tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31), reason="older timm tells no stride of it"
)

# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("halonet26t", 64, 256),  # blocks of 8 × 8 cells
        ("crossvit_tiny_240", 238, 240),  # two kinds of patches
        ("efficientformer_l1", 64, 224),  # attention with a bias of 49 × 49
        pytest.param("convmixer_768_32", 64, 63, marks=NEWER),  # patches of 7
        ("mobilenetv3_small_050", 50, 64),
    ],
)
def test_a_size_that_is_not_taken_is_refused_with_one_that_is(name: str, size: int, fits: int) -> None:
    with pytest.raises(UserError, match=f"^{name} can't take images of {size} px") as caught:
        Encoder(name, size)
    assert caught.value.hint == f"try --size {fits}"
    assert "\n" not in str(caught.value)
    assert outline(name, fits).width > 0


@pytest.mark.parametrize("name", ["halonet26t", "crossvit_tiny_240", "efficientformer_l1"])
def test_the_size_that_is_chosen_is_one_that_is_taken(name: str) -> None:
    known = card("mfm")
    values = {**known.facts["defaults"], "data.sources": ["photos"], "model.backbone": name, "run.out": "no"}
    ready = resolve(build_pretrain(known.name, known.Config, values), 100, 96, CPU)
    assert ready.config.data.size == native_size(name)
    assert "does not take" in ready.reasons["data.size"]


@pytest.mark.parametrize(
    "name",
    ["efficientnet_b1", "inception_v3", "crossvit_tiny_240", "levit_128s"],
)
def test_native_sizes_are_never_refused(name: str) -> None:
    assert takes(name, native_size(name))


def test_a_trial_draws_no_random_numbers_and_leaves_the_weights_as_they_were() -> None:
    torch.manual_seed(5)
    expected = timm.create_model("xcit_nano_12_p8_224", num_classes=0, img_size=64).state_dict()
    torch.manual_seed(5)
    found = Encoder("xcit_nano_12_p8_224", 64).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "told"),
    [("resnet18", "can't be built with patch_size 4"), ("deit_tiny_distilled_patch16_224", "distillation")],
)
def test_what_can_not_be_built_is_one_line(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        Encoder(name, 64, patch_size=4)
    assert "\n" not in str(caught.value)
    if "take " in caught.value.hint:
        assert timm.is_model(caught.value.hint.removeprefix("take "))


def test_a_lambda_network_is_built() -> None:
    """Its weights of five axes know no channels_last."""
    assert Encoder("lambda_resnet26t", 64).family == "cnn"


def test_the_command_line_says_it_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["pretrain", "fractal:4", "-b", "halonet26t", "--size", "64", "--out", str(tmp_path / "run")]
    code, _, said = called(words, monkeypatch, capsys)
    assert code == 2
    assert said.splitlines()[-2:] == [
        "error: halonet26t can't take images of 64 px",
        "hint: try --size 256",
    ]
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- maps

PLACES = ["hiera_tiny_224", "vit_relpos_small_patch16_224"]


@pytest.mark.parametrize("name", PLACES)
def test_cells_lie_where_the_pixels_are(name: str) -> None:
    """A change of one corner's pixels moves that corner's cell most, whatever order tokens have."""
    torch.manual_seed(0)
    size = 128
    made = Encoder(name, size).eval()
    _, rows, columns = made.map_shape
    batch = torch.rand(1, 3, size, size)
    for row, column in [(0, columns - 1), (rows - 1, 0)]:
        side = size // rows
        other = batch.clone()
        other[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 1.0
        with torch.no_grad():
            moved = (made.maps(other)[0] - made.maps(batch)[0]).square().sum(1)[0]
        assert divmod(int(moved.argmax()), columns) == (row, column)


def test_the_map_of_relative_positions_is_that_of_the_patch_tokens() -> None:
    torch.manual_seed(0)
    made, batch = Encoder("vit_relpos_small_patch16_224", 64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        patches = made.model.forward_features(made.normalize(batch))
        found = made.maps(batch)[0]
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(found[:, :, row, column], patches[:, 4 * row + column])


def test_vector_and_map_may_have_different_widths() -> None:
    """A MobileNet's vector has passed a layer more; methods on vectors and on maps build their own heads."""
    made, batch = Encoder("lcnet_035", 64).eval(), torch.rand(2, 3, 64, 64)
    assert made.vector(batch).shape == (2, made.width)
    assert tuple(made.maps(batch)[0].shape[1:]) == made.map_shape
    assert made.map_shape[0] != made.width
    config, info = card("simclr").Config(), Info(4, 64, 64, "lcnet_035")
    values = {key: value for key, (value, _) in load("simclr").resolve(config, "cnn", info).items()}
    own = {key: value for key, value in values.items() if "." not in key}
    assert load("simclr")(card("simclr").Config(**own), made, info) is not None


def test_mfm_predicts_every_pixel_of_a_size_that_cells_do_not_divide() -> None:
    size = 299
    made = Encoder("inception_v3", size)
    method = MFM(MFM.Config(radius=16.0, low_share=0.3, initialization="official"), made, Info(2, size, size))
    cell = method.head[1].upscale_factor
    assert cell == -(-size // made.map_shape[1])
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found, _ = method.eval().predict(torch.rand(1, 3, size, size))
    assert found.shape == (1, 3, size, size)
    side = cell * made.map_shape[1]
    assert seen[0].shape == (1, 3, side, side) == (1, 3, 304, 304)
    assert torch.equal(found, seen[0][..., 2:301, 2:301])


@pytest.mark.parametrize("name", ["halonet26t", "xcit_nano_12_p8_224"])
def test_dino_goes_without_small_crops_where_the_backbone_takes_one_size(name: str) -> None:
    family = outline(name, 256 if name == "halonet26t" else 64).family
    found = load("dino").resolve(card("dino").Config(), family, Info(100, 256, 256, name))
    assert found["local_crops"][0] == 0


# ----------------------------------------------------------------------------------------------- leaving


def test_weights_under_two_names_are_saved_and_loaded(tmp_path: Path) -> None:
    """CoaT has modules under two names; safetensors takes no shared memory."""
    torch.manual_seed(0)
    made = Encoder("coat_tiny", 64).eval()
    write_encoder(made, tmp_path, "model.safetensors", {})
    batch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path).vector(batch), made.vector(batch))


@pytest.mark.parametrize("name", ["levit_128s", "lcnet_035", "pit_ti_224"])
def test_a_share_of_the_table(tmp_path: Path, name: str) -> None:
    """`benchmarks/backbones.py` does one small model of every file of timm."""
    found = table.in_a_process(name, tmp_path)
    assert found.get("trained"), found
    assert found["difference"] < 1e-5
    assert json.loads(json.dumps(found)) is not None
    assert found["dino"] == "yes" or "local_crops" in found["dino"]
    assert nearest_size(name, 64) == found["size"]
    assert [*tmp_path.iterdir()] == []
