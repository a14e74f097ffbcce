"""Pictures of what an encoder learned: what they show is compared with slow loops and closed forms."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sslkit.augmentations.corruptions import CORRUPTIONS
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.evaluation.robustness.robustness_result import (
    RobustnessResult,
    SourceRobustness,
    make_robustness_plan,
)
from sslkit.models.encoder import Encoder
from sslkit.training.pretrain.config import pretrain_config
from sslkit.training.pretrain.pretrain import pretrain
from sslkit.visualization.figures.attention_maps import (
    attention_maps,
    mean_distance,
    patch_distances,
    rolled,
    watch_attention,
)
from sslkit.visualization.figures.embedding_map import (
    image_map,
    limits,
    principal,
    projections,
    without_overlap,
)
from sslkit.visualization.figures.first_layer import first_filters, frequency_response
from sslkit.visualization.figures.layers import block_maps, relative_amplitude
from sslkit.visualization.figures.neighbours import Neighbour, neighbours
from sslkit.visualization.figures.pca import components, feature_maps
from sslkit.visualization.figures.runs import Compared, compare_figure, table_rows
from sslkit.visualization.inputs import Inputs
from sslkit.visualization.kinds import KIND_GROUPS, KINDS
from sslkit.visualization.report.stored import stored_robustness
from sslkit.visualization.visualize import visualize

ENCODER_KINDS = ["attention", "pca", "neighbours", "map", "filters", "layers"]


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(normed: bool = False) -> Encoder:
    """A tiny ViT, its weights made larger so that attention is not everywhere alike."""
    torch.manual_seed(0)
    encoder = Encoder("test_vit", 32, patch_size=8).eval()
    for block in encoder.model.blocks:
        if normed:
            block.attn.q_norm, block.attn.k_norm = nn.LayerNorm(32), nn.LayerNorm(32)
        with torch.no_grad():
            block.attn.qkv.weight.mul_(8)
    return encoder


def rendered_inside(figure: Figure) -> bool:
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    return bool(page.x0 <= drawn.x0 and drawn.x1 <= page.x1 and page.y0 <= drawn.y0 and drawn.y1 <= page.y1)


# -------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("normed", [False, True])
def test_watched_attention_is_what_the_fused_product_used(normed: bool, pictures: Tensor) -> None:
    encoder = vit(normed)
    seen: dict[int, Tensor] = {}
    values, outputs = [], []
    for block in encoder.model.blocks:
        assert block.attn.fused_attn
        assert block.attn.head_dim == 32
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: values.append(output))
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    with torch.no_grad(), watch_attention(encoder.model, seen.__setitem__):
        encoder.vector(pictures)
    assert len(seen) == len(outputs) == len(encoder.model.blocks) > 1
    for number, (qkv, output) in enumerate(zip(values, outputs, strict=True)):
        attention = seen[number]
        value = qkv.unflatten(2, (3, attention.shape[1], -1))[:, :, 2].transpose(1, 2)  # [B, H, N, d]
        assert torch.allclose((attention @ value).transpose(1, 2).flatten(2), output, atol=1e-5)
        assert torch.allclose(attention.sum(-1), torch.ones(attention.shape[:-1]))
    seen.clear()
    with torch.no_grad():
        encoder.vector(pictures)
    assert not seen  # the hooks are gone


def test_maps_rollout_and_distance_equal_a_slow_walk(pictures: Tensor) -> None:
    encoder = vit()
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), watch_attention(encoder.model, seen.__setitem__):
        encoder.vector(pictures)
    found = attention_maps(encoder, pictures)
    assert found.from_class_token
    last = max(seen)
    assert torch.allclose(found.heads, seen[last][:, :, 0, 1:].unflatten(-1, (4, 4)), atol=1e-6)
    flow = np.eye(17)
    for number in sorted(seen):
        mixed = seen[number][1].mean(0).numpy() + np.eye(17)
        flow = (mixed / mixed.sum(1, keepdims=True)) @ flow
    assert np.allclose(found.rollout[1].flatten(), flow[0, 1:], atol=1e-6)
    total = 0.0
    for image in range(2):
        among = seen[last][image, 1, 1:, 1:]
        for query in range(16):
            weights = among[query] / among[query].sum()
            far = [np.hypot(k // 4 - query // 4, k % 4 - query % 4) * 8 for k in range(16)]
            total += float(weights.double() @ torch.tensor(far)) / 32
    assert float(found.distance[last, 1]) == pytest.approx(total, rel=1e-5)


def test_without_class_token_the_mean_patch_asks(pictures: Tensor) -> None:
    encoder = vit()
    encoder.model.cls_token = None
    encoder.model.pos_embed = nn.Parameter(encoder.model.pos_embed[:, 1:])
    encoder.model.num_prefix_tokens = 0
    encoder.model.no_embed_class = True
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), watch_attention(encoder.model, seen.__setitem__):
        encoder.vector(pictures)
    found = attention_maps(encoder, pictures)
    assert not found.from_class_token
    assert torch.allclose(found.heads.flatten(2), seen[max(seen)].mean(2), atol=1e-6)
    assert torch.allclose(found.rollout.sum((1, 2)), torch.ones(2))


def test_closed_forms_of_distance_and_rollout() -> None:
    between = patch_distances(2, 3)
    assert float(between[0, 5]) == pytest.approx(5**0.5)
    assert torch.allclose(mean_distance(torch.eye(6)[None], between), torch.zeros(1))
    alike = torch.full((1, 6, 6), 0.1)  # rows need not sum to 1
    assert float(mean_distance(alike, between)) == pytest.approx(float(between.mean()))
    assert torch.allclose(rolled(torch.full((2, 4, 4), 0.25), torch.eye(4)), 0.5 * torch.eye(4) + 0.125)


# ----------------------------------------------------------------------------------- components, filters


def test_components_find_what_was_hidden_in_the_features() -> None:
    random = torch.Generator().manual_seed(0)
    subject = torch.zeros(2, 8, 8)
    subject[:, 2:6, 2:6] = 1
    axis = torch.randn(16, generator=random)
    noise = 0.01 * torch.randn(2, 16, 8, 8, generator=random)
    for sign in (1, -1):  # whatever the sign of the axis, the middle is foreground
        found = components(sign * subject[:, None] * axis[:, None, None] + noise)
        assert torch.equal(found.first > 0, subject.bool())
        assert found.explained > 0.99
        outside = found.foreground.permute(0, 2, 3, 1)[~subject.bool()]
        assert (outside == outside[0]).all()
    again = components(-subject[:, None] * axis[:, None, None] + noise)
    assert torch.equal(found.colours, again.colours)


def test_components_are_numpys() -> None:
    maps = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = components(maps)
    cells = maps.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    left, values, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    first = (left[:, 0] * values[0]).reshape(2, 4, 3)
    same = np.allclose(found.first, first, atol=1e-5) or np.allclose(found.first, -first, atol=1e-5)
    assert same
    assert found.explained == pytest.approx((values[:3] ** 2).sum() / (values**2).sum())
    with pytest.raises(UserError, match="2 channels"):
        components(maps[:, :2])


def test_features_all_alike_are_no_error() -> None:
    found = components(torch.ones(1, 4, 3, 3))
    assert all(bool(torch.isfinite(part).all()) for part in (found.colours, found.first, found.foreground))


def test_a_cnns_map_is_the_deepest_fine_one(pictures: Tensor) -> None:
    encoder = Encoder("resnet18", 96).eval()
    maps, origin = feature_maps(encoder, nn.functional.interpolate(pictures, 96))
    assert maps.shape[1:] == (128, 12, 12)
    assert origin == "level 3 of 5"


def test_frequency_response_closed_forms() -> None:
    constant = torch.full((1, 3, 8, 8), 1 / 64)
    response = frequency_response(constant)[0]
    assert response.shape == (32, 32)
    assert float(response[16, 16]) == pytest.approx(1)
    assert float(response[16, 16 + 4]) == pytest.approx(0, abs=1e-6)  # a box of 8 px has a zero at 1/8
    single = torch.zeros(1, 3, 4, 4)
    single[..., 1, 2] = 0.7
    assert torch.allclose(frequency_response(single), torch.full((1, 32, 32), 0.7))
    wave = torch.cos(2 * torch.pi * 0.25 * torch.arange(32))[None, None, None].expand(1, 3, 32, 32) / 512
    peak = frequency_response(wave)[0]
    assert float(peak[16, 16 + 8]) == pytest.approx(1, rel=1e-5)
    assert float(peak.sum()) == pytest.approx(2, rel=1e-4)


def test_first_filters_count_the_normalisation() -> None:
    encoder = vit()
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    weight = encoder.model.patch_embed.proj.weight.detach() / std
    found = first_filters(encoder)
    assert found.layer == "patch_embed.proj"
    strength = found.kernels.square().sum((1, 2, 3))
    assert (strength[:-1] >= strength[1:]).all()
    assert torch.allclose(strength, weight.square().sum((1, 2, 3)).sort(descending=True).values)


def test_relative_amplitude_of_known_maps() -> None:
    x = torch.arange(16)
    maps = (2 + torch.cos(2 * torch.pi * 5 * x / 16)).expand(1, 1, 16, 16)
    profile = relative_amplitude(maps)
    # Amplitude 1/4 of the constant's, in two of the bins of ring 5.
    distance = np.hypot(*np.mgrid[-8:8, -8:8])
    bins = ((distance >= 5) & (distance < 6)).sum()
    assert float(profile[0]) == 0
    assert float(profile[5]) == pytest.approx(np.log10(2 * 0.25 / bins), abs=1e-4)
    assert float(profile[3]) < -5


def test_block_maps_one_per_block_and_none_where_too_small(pictures: Tensor) -> None:
    encoder = vit()
    assert [tuple(level.shape[1:]) for level in block_maps(encoder, pictures)] == [(64, 4, 4)] * 6
    with pytest.raises(UserError, match="2 × 2: too small"):
        block_maps(encoder, pictures[..., :16, :16])
    levels = block_maps(Encoder("resnet18", 64).eval(), nn.functional.interpolate(pictures, 64))
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]


# ------------------------------------------------------------------------------------- neighbours, maps


def test_neighbours_mark_right_and_wrong() -> None:
    grey = torch.full((3, 8, 8), 0.5)
    row = [
        Neighbour(grey, "cat", 0.9),
        Neighbour(grey, "a very long name of a $dog$", 0.8),
        Neighbour(grey, "", 0.7),
        Neighbour(grey, "", 1 - 4e-5),
    ]
    figure = neighbours([Neighbour(grey, "cat", 1.0)], [row], "run", 10)
    (wall,) = figure.axes
    assert [one.get_label() for one in wall.images] == ["query", "0.900 ✓", "0.800 ✗", "0.700", "1 − 4e-5"]
    edges = [frame.get_linewidth() for frame in wall.patches]
    assert edges[1] == edges[2] > edges[3]
    assert any("1 of 2 of the same class" in text.get_text() for text in figure.texts)
    assert rendered_inside(figure)


def test_principal_is_numpys_and_apart_leaves_room() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    points, shares = principal(vectors.astype(np.float32))
    left, values, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    assert shares == pytest.approx((values[:2] ** 2 / (values**2).sum()).tolist(), rel=1e-5)
    chosen = without_overlap(points, 2.0)
    assert chosen[0] == 0
    rest = set(range(30)) - set(chosen)
    gaps = np.abs(points[:, None] - points[None]).max(-1)
    assert all(gaps[a, b] >= 2 for a in chosen for b in chosen if a != b)
    assert all(min(gaps[a, b] for b in chosen if b < a) < 2 for a in rest)


def test_a_map_names_its_classes_and_greys_the_rest() -> None:
    random = np.random.default_rng(0)
    labels = [f"class {number % 14}" for number in range(60)]
    asked: list[int] = []

    def thumbnail(index: int) -> Tensor:
        asked.append(index)
        return torch.rand(3, 12, 12)

    figure = image_map({"PCA": random.normal(size=(60, 2))}, thumbnail, labels, "run")
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names[0] == "other"
    assert len(names) == 13
    assert 1 < len(asked) < 60
    assert rendered_inside(figure)
    same = image_map({"PCA": np.zeros((3, 2))}, thumbnail, None, "run")  # a collapsed model
    assert len(same.axes) == 1


def test_a_far_point_does_not_squeeze_the_others() -> None:
    points = np.random.default_rng(0).normal(size=(200, 2))
    low, high = limits(points)
    assert np.array_equal(low, points.min(0))
    assert np.array_equal(high, points.max(0))
    far = np.concatenate([points, [[1000.0, 0.0]]])
    assert [corner.tolist() for corner in limits(far)] == [low.tolist(), high.tolist()]
    asked: list[int] = []

    def thumbnail(index: int) -> Tensor:
        asked.append(index)
        return torch.rand(3, 12, 12)

    figure = image_map({"PCA": far[::-1]}, thumbnail, None, "run")
    assert figure.axes[0].get_title(loc="left") == "PCA; 1 of 201 lie outside"
    assert 0 not in asked
    assert limits(far[-5:])[1][0] == 1000  # of a few points all are shown
    assert np.array_equal(limits(np.zeros((30, 2)))[0], [0, 0])
    spot = np.zeros((200, 2))
    spot[0] = 3, 4  # percentiles of a collapsed model are one point
    assert limits(spot)[1].tolist() == [3, 4]


def test_a_map_shows_distances_as_they_are() -> None:
    """An inch is as far on either axis, whatever the cloud's shape; a flat one has a flat frame."""
    random = np.random.default_rng(0)
    for stretch, flat in (((10.0, 1.0), True), ((1.0, 1.0), False), ((1.0, 10.0), False)):
        points = random.normal(size=(100, 2)) * stretch
        figure = image_map(
            {"PCA": points}, lambda _: torch.rand(3, 12, 12), [f"c{n % 14}" for n in range(100)], ""
        )
        for axes in figure.axes:
            size = axes.get_position().size * figure.get_size_inches()
            spans = np.diff([axes.get_xlim(), axes.get_ylim()])[:, 0]
            assert spans[0] / size[0] == pytest.approx(spans[1] / size[1])
            assert (size[1] < 0.6 * size[0]) == flat
            assert all(spans >= np.ptp(points, axis=0) * 0.9)
        assert rendered_inside(figure)


def test_a_map_without_what_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, text in (
        ("umap", "import a_missing_one"),
        ("sklearn", "raise OSError('no library\\nat all')"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text, encoding="utf-8")
        for module in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    made = projections(vectors, 0, Console())
    assert [name.partition(",")[0] for name in made] == ["PCA"]
    assert capsys.readouterr().err.splitlines() == [
        "warning: map without UMAP: umap can't be imported, No module named 'a_missing_one'",
        "warning: map without t-SNE: sklearn can't be imported, no library",
    ]


# ---------------------------------------------------------------------------------------- whole pictures


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of MFM on a ViT and one of SimCLR on a CNN."""
    place = tmp_path_factory.mktemp("runs")
    small = {"size": 64, "epochs": 1, "batch_size": 8, "workers": 0, "pictures": 0, "device": "cpu"}
    made = []
    for method, backbone in (("mfm", "test_vit"), ("simclr", "resnet18")):
        flags = {**small, "backbone": backbone, "out": place / f"{method}-1"}
        made.append(pretrain(pretrain_config(["fractal:16"], method, flags=flags)))
    return made[0], made[1]


def test_what_a_cnn_does_not_have_is_told(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet18 has no attention from each patch to all"):
        visualize(str(runs[1]), kinds=["attention"], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_no_text_is_cut_off(kind: str, runs: tuple[Path, Path]) -> None:
    for run in runs:
        subject = Inputs(str(run), count=2)
        if kind != "attention" or subject.encoder.family == "vit":
            assert rendered_inside(KINDS[kind].draw(subject))


def test_weights_alone_have_pictures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = visualize("random/test_vit", ["fractal:6"], size=64, kinds=["filters", "layers"])
    assert [str(path) for path in written] == [
        "pictures-test_vit/filters.png",
        "pictures-test_vit/layers.png",
    ]
    for kind in ("recon", "views", "curves", "compare"):
        with pytest.raises(UserError, match=f"{kind} needs a run"):
            visualize("random/test_vit", ["fractal:6"], kinds=[kind])
    with pytest.raises(UserError, match="attention needs a trained run"):
        visualize("mfm", ["fractal:6"], kinds=["attention"])


def test_queries_are_the_pictures_and_no_neighbours_of_themselves(runs: tuple[Path, Path]) -> None:
    subject = Inputs(str(runs[0]), count=2, limit=5)
    gallery = subject.gallery
    assert len(gallery.images) <= 7
    chosen = [subject.images.paths[index] for index in subject.originals]
    assert [gallery.images.paths[row] for row in gallery.queries] == chosen
    with torch.no_grad():
        views = [CenterCrop(64)(image).float() / 255 for image in subject.originals.values()]
        expected = subject.encoder.vector(torch.stack(views))
    assert np.allclose(gallery.vectors[gallery.queries], expected, atol=1e-4)


def test_compare_shows_the_same_images_of_all_runs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(str, runs)
    for run, knn in zip(runs, (51.25, 40.0), strict=True):
        rows = [
            {
                "name": f"elsewhere/{run.name}",
                "kind": "source",
                "knn": knn,
                "knn_interval": 2.0,
                "linear": 60.0,
            },
            {"name": "raw pixels", "kind": "pixels", "knn": 30.0, "linear": 31.0},
        ]
        (run / "probe.json").write_text(json.dumps({"data": "photos", "rows": rows}), encoding="utf-8")
    subject = Inputs(first, count=2, others=[second])
    figure = KINDS["compare"].draw(subject)
    shown = [picture for axes in figure.axes for picture in axes.images]
    assert len(shown) == 2 * (1 + 2 + 2)  # the images, both of MFM's composites, SimCLR's two views
    texts = [text.get_text() for text in figure.texts]
    assert {"mfm-1", "simclr-1", "51.2 ± 2.0", "40.0 ± 2.0", "60.0", "photos"} <= set(texts)
    assert texts.count("raw pixels") == 1
    assert figure.axes[0].get_ylabel() == "loss / first loss"
    assert figure.axes[0].get_title("left") == "Loss"  # SimCLR has no tasks
    assert rendered_inside(figure)
    again = tmp_path / "again"
    shutil.copytree(runs[0], again)
    figure = KINDS["compare"].draw(Inputs(first, count=1, others=[str(again)]))
    low, high, spectra = figure.axes[:3]
    assert [axes.get_title("left") for axes in (low, high)] == ["Loss, low predicted", "Loss, high predicted"]
    assert low.get_ylabel() == high.get_ylabel() == "loss"  # the same settings: one unit
    logged = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    for axes, name in ((low, "loss_low"), (high, "loss_high")):
        shown = [line[name] for line in logged if line[name] is not None]
        assert [list(drawn.get_ydata()) for drawn in axes.lines] == [shown, shown]
    assert not any(axes.get_legend() for axes in (low, high, spectra))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mfm-1", "again", "from high", "from low"]
    place = legend.get_window_extent()
    assert place.y1 < min(axes.get_tightbbox().y0 for axes in (low, high, spectra))
    assert place.y0 > max(text.get_window_extent().y1 for text in figure.texts if text.get_text() == "kNN")
    assert rendered_inside(figure)
    assert [path.stem for path in visualize(first, kinds=["compare"], others=[second], out=tmp_path)] == [
        "compare"
    ]
    for others, message in (([], "compare needs two runs"), (["mfm"], "mfm is no run")):
        with pytest.raises(UserError, match=message):
            visualize(first, kinds=["compare"], others=others, out=tmp_path)


def test_compare_of_runs_with_nothing_but_names() -> None:
    images = torch.rand(1, 3, 16, 16)
    runs = [Compared(name * 20, "mfm", [], None, images, {}) for name in ("ab", "$c_")]
    assert table_rows(runs) == []
    probed = replace(runs[0], probe={"data": "d", "rows": [{"name": runs[0].name, "knn": 50}]})
    assert [row[:2] + row[3:] for row in table_rows([probed, runs[1]])] == [
        (probed.name, "50.0", "d"),
        (runs[1].name, "–", "not probed"),
    ]
    assert rendered_inside(compare_figure(runs))


def test_stored_robustness_is_what_was_measured(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = runs[0]
    (run / "probe.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"^robust: no robustness was measured") as caught:
        visualize(str(run), kinds=["filters", "robust"], out=tmp_path)
    assert caught.value.hint == f"sslkit probe {run} DATA --robust, or leave out --kind robust"
    with pytest.raises(UserError, match=r"^robust needs a run") as caught:
        visualize("random/resnet10t", kinds=["robust"], out=tmp_path)
    assert "--kind" not in caught.value.hint
    plan = make_robustness_plan(32, severities=(1, 5), radii=(2.0, 4.0), heat_map=1, epsilons=())
    row = SourceRobustness(
        "run", 60.0, dict.fromkeys(CORRUPTIONS, (50.0, 20.0)), (30.0, 40.0), (20.0, 10.0),
        ((1.0, 2.0, 3.0),) * 3, (), (), torch.ones(1, 4), mean_corruption_error=90.0,
    )  # fmt: skip
    measured = RobustnessResult((row,), plan, 4, 32)
    document = {"rows": [], "robustness": measured.to_document(), "unknown": 1}
    (run / "probe.json").write_text(json.dumps(document), encoding="utf-8")
    assert stored_robustness(run) == measured
    written = visualize(str(run), kinds=["robust"], out=tmp_path)
    assert [path.stem for path in written] == ["robust-corruptions", "robust-filters", "robust-waves"]
    assert set(KIND_GROUPS["robust"]) <= set(KINDS)
    with pytest.raises(UserError, match=r"robust-attacks: the probe of .* left epsilons out"):
        visualize(str(run), kinds=["robust-attacks"], out=tmp_path)
    (run / "probe.json").write_text('{"robustness": {"rows": [{}]}}', encoding="utf-8")
    with pytest.raises(UserError, match="holds another robustness"):
        visualize(str(run), kinds=["robust"], out=tmp_path)
