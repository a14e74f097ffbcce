"""Pictures: what they show is compared with NumPy's full complex FFT and with MFM's published mask counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from sslkit import api
from sslkit.augmentations.crops import RandomResizedCrop
from sslkit.core import rng
from sslkit.core.config import build as configuration
from sslkit.core.config.build import build_pretrain
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.images.picture import Picture
from sslkit.data.sources.image_set import open_images
from sslkit.evaluation.probe.result import FewRow, Level, ProbeResult, Row
from sslkit.evaluation.probe.size_grid import Cell
from sslkit.frequency.measures import log_magnitude, power_law, psnr, ring_error, ring_power
from sslkit.methods import card
from sslkit.methods.base import Info
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import RunFolder, build_method, describe
from sslkit.visualization.draw import draw_panels, draw_reconstruction, draw_views
from sslkit.visualization.figures.curves import curves, read_metrics, running_mean
from sslkit.visualization.figures.mask_families import families
from sslkit.visualization.figures.mask_pictures import masks
from sslkit.visualization.figures.probe_charts import bars, grid_curves, shots_curves
from sslkit.visualization.figures.spectrum import spectrum
from sslkit.visualization.figures.style import save_figure
from sslkit.visualization.inputs import Inputs
from sslkit.visualization.kinds import KIND_GROUPS
from sslkit.visualization.visualize import KINDS, refusal, visualize

OWN = ("masks", "families", "views", "spectrum", "recon", "curves")
LEARNED = ("attention", "pca", "neighbours", "map", "filters")
HOSTILE = "<script>alert('x')</script>&\"quoted\""


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Four pictures with power at all frequencies, [4, 3, 24, 24] in [0, 1]."""
    return torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not trained, on ten generated images; its data have a hostile name."""
    found = open_images(["fractal:10"])
    values = {"model.backbone": "test_vit", "data.size": 32, "data.sources": ("fractal:10",), "run.seed": 5}
    resolved = {"method.radius": 4.5, "method.low_share": 0.5, "schedule.epochs": 2, "model.patch_size": 0}
    config = build_pretrain("mfm", card("mfm").Config, {**values, **resolved})
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "mfm-test-1")
    (folder.path / "config.toml").write_text(configuration.dump(config), encoding="utf-8")
    info = Info(10, 32, 128)
    facts = describe(found, info, torch.device("cpu"))
    folder.update(status="completed", **{**facts, "data": {**facts["data"], "name": HOSTILE}})
    method = build_method(config, info)
    optimizer = torch.optim.AdamW(method.parameters())
    checkpoint.write(folder.path / "checkpoints", 4, method, optimizer, {})
    for step in range(1, 5):
        folder.log({"step": step, "epoch": step / 2, "loss": 1 / step, "loss_low": None, "lr": 1e-3 * step})
    return folder.path


def titles(figure: Figure) -> list[str]:
    """Of the pictures, and of the plots."""
    plots = [axes.get_title() or axes.get_title("left") for axes in figure.axes]
    return [str(picture.get_label()) for picture in pictures(figure)] + plots


def pictures(figure: Figure, begin: str = "") -> list[AxesImage]:
    """Those whose title begins so."""
    found = [picture for axes in figure.axes for picture in axes.images]
    return [picture for picture in found if str(picture.get_label()).startswith(begin)]


def pixels_of(picture: AxesImage) -> np.ndarray:
    return np.asarray(picture.get_array())


def blank(path: Path) -> bool:
    with Image.open(path) as opened:
        return float(np.asarray(opened.convert("L")).std()) == 0


def rendered_inside(figure: Figure) -> bool:
    """No text is cut off by the edge of the page."""
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    wide = page.x0 <= drawn.x0 and drawn.x1 <= page.x1
    return bool(wide and page.y0 <= drawn.y0 and drawn.y1 <= page.y1)


# ---------------------------------------------------------------------------------------------- numbers


def test_log_magnitude_is_numpys(images: Tensor) -> None:
    full = np.fft.fftshift(np.abs(np.fft.fft2(images.double().numpy())), axes=(-2, -1))
    expected = np.log10(1 + np.sqrt(full**2).mean(1))
    assert np.allclose(log_magnitude(images).numpy(), expected, atol=1e-4)


def test_power_law_finds_the_exponent_it_was_made_with() -> None:
    frequency = np.arange(40) + 0.5
    scale, exponent = power_law(torch.from_numpy(7 * frequency**-2.3))
    assert (scale, exponent) == pytest.approx((7, 2.3))


def test_ring_error_is_one_for_nothing_and_zero_for_all(images: Tensor) -> None:
    assert torch.allclose(ring_error(images, torch.zeros_like(images)), torch.ones(13))
    assert ring_error(images, images).abs().max() == 0
    assert ring_power(images).shape == (4, 13)


def test_psnr_closed_form(images: Tensor) -> None:
    assert torch.allclose(psnr(images, images + 0.1), torch.full((4,), 20.0), atol=1e-3)


def test_running_mean_equals_the_slow_loop_and_leaves_nan_out() -> None:
    values = np.array([1.0, np.nan, 3.0, 8.0, np.nan, np.nan, np.nan, 2.0])
    width = 1
    slow = [values[max(0, i - width) : i + width + 1] for i in range(len(values))]
    expected = [w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in slow]
    assert np.allclose(running_mean(values, width), expected, equal_nan=True)


# ---------------------------------------------------------------------------------------------- figures


def test_mask_gallery_shows_the_published_counts() -> None:
    figure = masks(torch.full((3, 224, 224), 0.5), 16)
    shown = [title for title in titles(figure) if title]
    assert [title.split(" ")[0] for title in shown[:4]] == ["193", "793", "3,205", "12,849"]
    assert shown[1] == "793 bins, 1.6%"
    assert shown[5].startswith("49,383")  # 224² - 793
    assert shown[9].startswith("2,412")  # the band from 16 to 32
    assert len(pictures(figure)) == 24
    assert rendered_inside(figure)


def test_a_gallery_of_small_pictures_with_a_fractional_radius() -> None:
    figure = masks(torch.rand(3, 33, 32, generator=torch.Generator().manual_seed(1)), 2.29)
    assert rendered_inside(figure)


def test_families_have_the_published_counts_and_their_parts_add_up() -> None:
    photo = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(2))
    figure = families(photo, 16)
    shares = [title for title in titles(figure) if "bins" in title]
    assert [share.split(" ")[0] for share in shares[:4]] == ["793", "961", "481", "2,412"]
    assert shares[4].startswith("1,608")  # 2π · 16²
    assert shares[6] == "793 bins, 1.6%"  # the adaptive mask: as many as the disc
    assert rendered_inside(figure)
    pixels = [pixels_of(picture).astype(np.float64) for picture in pictures(figure)]
    assert len(pixels) == 7 * 3 + 2
    original = photo.permute(1, 2, 0).double().numpy()
    for low, index in ((True, 1), (False, 2)):  # of the disc, in NumPy; pictures are clamped
        expected = numpy_filter(original, 16, low) + (0 if low else 0.5)
        assert np.allclose(pixels[index], expected.clip(0, 1), atol=1e-5)
    rows, columns = np.mgrid[:97, :97] - 48  # the middle, three radii to each side
    assert np.array_equal(pixels[3], (abs(rows) < 16) & (abs(columns) < 16))  # centred
    band = numpy_filter(original, 32, True) - numpy_filter(original, 16, True)
    assert np.allclose(pixels[10], (band + 0.5).clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(("shape", "radius"), [((33, 32), 2.29), ((8, 9), 100.0), ((8, 8), 0.3)])
def test_families_of_small_pictures(shape: tuple[int, int], radius: float) -> None:
    figure = families(torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)), radius)
    assert rendered_inside(figure)


def test_a_mask_that_keeps_all_is_white_and_leaves_grey() -> None:
    figure = families(torch.full((3, 8, 9), 0.25), 100)
    mask, kept, rest = pictures(figure)[:3]
    assert mask.get_clim() == (0, 1)
    assert pixels_of(mask).min() == 1
    assert np.allclose(pixels_of(kept), 0.25)
    assert np.allclose(pixels_of(rest), 0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_spectrum_has_pictures_spectra_a_bar_and_a_curve(images: Tensor, count: int) -> None:
    figure = spectrum(images[:count], 4)
    assert len(pictures(figure)) == 8 * count
    assert titles(figure).count("high-pass, clamped") == count
    curve = figure.axes[-1]
    assert curve.get_xscale() == curve.get_yscale() == "log"
    assert "cycles per image" in curve.get_xlabel()
    assert rendered_inside(figure)


def test_curves_one_plot_per_figure_with_tasks_apart(tmp_path: Path) -> None:
    names = ("loss", "loss_low", "loss_high", "lr", "grad_norm", "rank", "std", "images_per_s", "wait")
    lines = [json.dumps({"step": i, "epoch": i / 9, **dict.fromkeys(names, 1.0 + i)}) for i in range(90)]
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"step": 91, "epo']), encoding="utf-8")
    metrics = read_metrics(tmp_path / "m.jsonl")
    assert len(metrics) == 90
    figure = curves(metrics)
    assert len(figure.axes) == 9
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)
    assert titles(figure)[:3] == ["Loss", "Loss, low predicted", "Loss, high predicted"]
    waiting = np.asarray(figure.axes[8].lines[0].get_ydata())
    assert waiting[0] == pytest.approx(100)  # shown in percent
    assert rendered_inside(figure)


def test_curves_of_one_line_and_of_none() -> None:
    assert len(curves([{"epoch": 1, "loss": 0.5, "loss_low": None}]).axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        curves([{"step": 1}])


def test_views_are_those_of_the_worker_and_inputs_those_of_numpy(run: Path) -> None:
    subject = Inputs(str(run), count=2)
    figure = draw_views(subject)
    made, inputs = pictures(figure, "view"), pictures(figure, "input")
    assert (len(made), len(inputs)) == (6, 6)
    places = [(index, epoch) for index in subject.originals for epoch in range(3)]
    for (index, epoch), view, given in zip(places, made, inputs, strict=True):
        transform, random = RandomResizedCrop(32), rng.generator(5, epoch, index)
        expected = transform(Picture(subject.originals[index]), random).permute(1, 2, 0).numpy() / 255
        assert np.allclose(pixels_of(view), expected, atol=1e-6)
        low = bool(rng.uniform(5, epoch, torch.tensor([index]), "mfm.keep_low") < 0.5)
        assert given.get_label() == f"input: {'low' if low else 'high'} kept"
        corrupted = np.clip(numpy_filter(expected, 4.5, low), 0, 1)
        assert np.allclose(pixels_of(given), corrupted, atol=1e-5)
    assert len({given.get_label() for given in inputs}) == 2  # both tasks were looked at


def numpy_filter(image: np.ndarray, radius: float, low: bool) -> np.ndarray:
    """The full-plane filter of an [H, W, C] image, by shifting as the paper writes it."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height // 2) ** 2 + (columns - width // 2) ** 2 < radius**2
    shifted = np.fft.fftshift(np.fft.fft2(image, axes=(0, 1)), axes=(0, 1))
    kept = shifted * (disc if low else ~disc)[..., None]
    return np.fft.ifft2(np.fft.ifftshift(kept, axes=(0, 1)), axes=(0, 1)).real


def test_a_baseline_is_shown_once_and_by_its_name(run: Path) -> None:
    """All its frequencies are predicted: one task instead of two halves, the composite is the prediction."""
    subject = Inputs(str(run), count=2)
    subject.method.config = dataclasses.replace(subject.method.config, corruption="sr")
    inputs = [title for title in titles(draw_views(subject)) if title.startswith("input")]
    assert inputs == ["input: sr"] * 6
    figure = draw_reconstruction(subject)
    shown = {name: [pixels_of(one) for one in pictures(figure, name)]
             for name in ("corrupted", "prediction", "composite")}  # fmt: skip
    assert {name: len(found) for name, found in shown.items()} == dict.fromkeys(shown, 2)
    assert np.allclose(shown["composite"], shown["prediction"], atol=1e-5)
    assert rendered_inside(figure)


def test_composite_is_numpys(run: Path) -> None:
    subject = Inputs(str(run), count=2)
    figure = draw_reconstruction(subject)
    shown = {name: [pixels_of(one) for one in pictures(figure, name)]
             for name in ("input", "prediction", "composite")}  # fmt: skip
    assert {name: len(found) for name, found in shown.items()} == {
        "input": 2,
        "prediction": 4,
        "composite": 4,
    }
    method = subject.method
    for place, low in ((0, True), (3, False)):
        image = np.asarray(shown["input"][place % 2], dtype=np.float64)
        given = torch.from_numpy(np.clip(numpy_filter(image, 4.5, low), 0, 1)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            raw = method.encoder.denormalize(method.predict(given)[0])[0].permute(1, 2, 0).double().numpy()  # type: ignore[operator]
        expected = np.clip(numpy_filter(image, 4.5, low) + numpy_filter(raw, 4.5, not low), 0, 1)
        assert np.allclose(shown["composite"][place], expected, atol=1e-4)
        decibels = -10 * np.log10(((expected - image) ** 2).mean())
        title = [t for t in titles(figure) if t.startswith("composite")][place]
        assert title == f"composite {decibels:.1f} dB"
    assert rendered_inside(figure)


def test_the_mean_colour_is_no_frequency(run: Path) -> None:
    (errors,) = [axes for axes in draw_reconstruction(Inputs(str(run), count=1)).axes if axes.lines]
    lines = [
        line for line in errors.lines if "task" not in str(line.get_label()) and len(line.get_xdata()) > 2
    ]
    points = [line for line in errors.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in lines] == [1.5, 1.5]
    assert len(points) == 2
    assert all(point.get_xdata()[0] < 1 for point in points)
    assert [text.get_text() for text in errors.get_xticklabels()][:2] == ["mean", "1"]


def probed(**changed: object) -> ProbeResult:
    """Two rows of made-up figures."""
    first = Row("run", "source", 8, 32, 87.5, 16.25, 100.0, 0.0, 1.0, "mean", "mean", {})
    second = dataclasses.replace(first, name="random", kind="random", knn=2.0, knn_interval=4.0, linear=20.0)
    counts = {"train": 40, "validation": 16, "classes": 2}
    result = ProbeResult("photos", (first, second), (), counts, 20, 0, **changed)  # type: ignore[arg-type]
    return result


def test_bars_near_the_ends_show_whisker_and_number() -> None:
    figure = bars(probed())
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 6.4  # what a phone shows whole
    for axes, (first, second) in zip(
        figure.axes, (((71.25, 100), (0, 6)), ((100, 100), (20, 20))), strict=True
    ):
        ends = [whisker.get_segments()[0][:, 0].tolist() for whisker in axes.collections]
        assert ends == [pytest.approx(first), pytest.approx(second)]
        frame = axes.get_window_extent()
        for text in axes.texts:
            assert frame.x0 < text.get_window_extent().x0 < text.get_window_extent().x1 < frame.x1
        assert max(axes.get_xticks()) == 100
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["87.5", "2.0"]
    assert rendered_inside(figure)


def test_plots_side_by_side_have_one_scale() -> None:
    cells = tuple(Cell("run", size, "own", 20.0 + size / 32, 9.0, 60.0, 8.0) for size in (32, 64))
    few = (
        FewRow("run", "source", 10.0, None, 50.0, None, {}),
        FewRow("random", "random", 5.0, 1.0, 6.0, 1.0, {}),
    )
    result = probed(levels=(Level(1, (0,), few, ()),), grid=cells)
    for figure, most in ((grid_curves(result), 60), (shots_curves(result), 100)):
        left, right = figure.axes
        assert left.get_ylim() == right.get_ylim()
        assert left.get_ylim()[0] == 0
        assert left.get_ylim()[1] > most
        assert rendered_inside(figure)


# ------------------------------------------------------------------------------------------------- verb


def test_a_run_gives_all_kinds_and_overwrites_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = visualize(str(run), out=tmp_path, count=2, console=Console(quiet=True))
    assert [path.name for path in first] == [f"{kind}.png" for kind in (*OWN, *LEARNED)]
    assert "layers is left out: the maps of test_vit are 2 × 2: too small" in capsys.readouterr().err
    assert not any(map(blank, first))
    before = first[0].read_bytes()
    again = visualize(str(run), kinds=["masks", "masks"], out=tmp_path, radius=2.0)
    assert [path.name for path in again] == ["masks-2.png"]
    assert first[0].read_bytes() == before != again[0].read_bytes()


def test_other_methods_show_their_own_panels(tmp_path: Path) -> None:
    options = {"backbone": "test_resnet", "size": 32, "epochs": 1, "batch_size": 8, "workers": 0}
    made = api.pretrain("fractal:16", method="simclr", out=tmp_path / "run", **options)
    written = visualize(str(made), kinds=["panels"], out=tmp_path / "pictures", count=2)
    assert [path.name for path in written] == ["panels.png"]
    subject = Inputs(str(made), count=2)
    assert [kind for kind in KINDS if refusal(kind, subject) is None] == [
        "masks", "families", "spectrum", "panels", "curves", "pca", "neighbours", "map", "filters", "layers",
    ]  # fmt: skip
    figure = draw_panels(subject)
    shown = {name: [pixels_of(one) for one in pictures(figure, name)] for name in ("image", "second")}
    image, index = subject.pictures, torch.arange(2)
    expected = subject.method.views.photometry["second"](image, index, 0, 0, "simclr.second")
    assert np.allclose(shown["image"], image.permute(0, 2, 3, 1), atol=1e-6)
    assert np.allclose(shown["second"], expected.permute(0, 2, 3, 1), atol=1e-6)
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "What it does to images" in page
    assert "What it predicts" not in page
    with pytest.raises(UserError, match="recon shows masked frequencies, and simclr masks none"):
        visualize(str(made), kinds=["recon"], out=tmp_path)


def test_a_method_without_a_run_and_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for number in range(2):
        names.append(f"photo {number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(names[-1])
    state = torch.get_rng_state()
    written = visualize("mfm", names)
    assert [str(path) for path in written] == [
        f"pictures-mfm/{k}.png" for k in ("masks", "families", "views", "spectrum")
    ]
    assert torch.equal(state, torch.get_rng_state())
    subject = Inputs("mfm", names)
    assert subject.pictures.shape == (2, 3, 40, 40)
    assert subject.radius == pytest.approx(16 * 40 / 224, abs=0.01)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mfm", {"kinds": ["recom"]}, "unknown kind of picture 'recom'"),
        ("mfm", {"kinds": ["recon"]}, "recon needs a trained run"),
        ("mfm", {"kinds": ["panels"]}, "panels needs a trained run"),
        ("mfn", {}, "unknown method 'mfn'"),
        ("./nowhere", {}, "is not a run"),
        ("mfm", {"radius": 0.0}, "--radius: 0.0 is not > 0"),
        ("mfm", {"count": 0}, "--count: 0 is not >= 1"),
        ("mfm", {"size": 4}, "--size: 4 is not >= 8"),
        ("mfm", {"images": ["missing-folder"]}, "missing-folder"),
    ],
)
def test_wrong_input_is_told_and_nothing_written(
    source: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        visualize(source, out=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_run_refuses_sizes_its_encoder_cannot_take(run: Path, tmp_path: Path) -> None:
    assert visualize(str(run), kinds=["recon"], size=48, count=1, out=tmp_path)
    with pytest.raises(UserError, match="not a multiple of 16"):
        visualize(str(run), kinds=["recon"], size=50, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_nearest_kind_is_suggested() -> None:
    with pytest.raises(UserError) as caught:
        visualize("mfm", kinds=["specturm"])
    assert "'spectrum'" in caught.value.hint
    with pytest.raises(UserError) as caught:
        visualize("mfm", kinds=["qqqqqqqq"])
    assert set(KINDS) | set(KIND_GROUPS) == set(caught.value.hint.removeprefix("known: ").split(", "))


def test_names_of_pictures_count_up(tmp_path: Path) -> None:
    for name in ("a.png", "a-2.png"):
        (tmp_path / name).touch()
    figure = curves([{"epoch": 1, "loss": 0.5}])
    assert save_figure(figure, tmp_path / "a.png").name == "a-3.png"
    assert not (tmp_path / "a.png").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.png", "a-3.png", "a.png"]
    assert save_figure(figure, tmp_path / "new" / "b.png").stat().st_size > 1000


def test_curves_that_are_zero_throughout_are_left_out() -> None:
    lines = [{"epoch": i, "loss": 0.0, "saving": 0.0, "wait": 0.0, "nonfinite": 0, "lr": 0.1} for i in (1, 2)]
    assert titles(curves(lines)) == ["Loss", "Learning rate"]
    figure = curves([*lines, {"epoch": 3, "loss": 0.0, "saving": 0.5, "lr": float("nan")}])
    assert titles(figure) == ["Loss", "Learning rate", "Saving"]
    assert figure.axes[2].get_ylabel() == "% of the time"
    assert np.asarray(figure.axes[2].lines[0].get_ydata())[-1] == pytest.approx(50)


def test_a_misspelt_run_is_not_taken_for_a_method_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first-run").mkdir()
    with pytest.raises(UserError) as caught:
        visualize("frist-run")
    assert caught.value.hint == "did you mean 'first-run'?"
    with pytest.raises(UserError) as caught:
        visualize("mfn")
    assert caught.value.hint == "did you mean 'mfm'?"
