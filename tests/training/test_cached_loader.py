"""A set in memory gives the very batches that its files give, and is taken there only where it pays."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations.batch_crops import crop_resize_batch
from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError
from sslkit.data.images.picture import Cut, Picture
from sslkit.data.loading import memory
from sslkit.data.loading.decoded import ALLOCATION, DecodedImages, decode_all
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.training.loop import cached_loader as cached
from sslkit.training.loop.cached_loader import cached_loader

CPU = torch.device("cpu")
CROP = RandomResizedCrop(16, box=True)
TRANSFORM = Views(first=CROP, second=RandomResizedCrop(12))


@dataclass(frozen=True)
class WholePicture:
    """A transform of a plug-in, which cuts nothing out."""

    def __call__(self, picture: Picture, random: np.random.Generator) -> Mapping[str, Tensor]:
        small = picture.rgb().resize((8, 8))
        return {"image": torch.from_numpy(np.array(small)).permute(2, 0, 1)}


def write(folder: Path, sizes: list[tuple[int, int]], ending: str = "png") -> ImageSet:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:02}.{ending}", **({"quality": 90} if ending == "jpg" else {}))
    return open_images([str(folder)])


@pytest.fixture
def equal(tmp_path: Path) -> ImageSet:
    return write(tmp_path / "equal", [(20, 18)] * 22)


@pytest.fixture
def mixed(tmp_path: Path) -> ImageSet:
    return write(tmp_path / "mixed", [(20 + 3 * i, 40 - i) for i in range(22)])


@pytest.fixture
def large(tmp_path: Path) -> ImageSet:
    """JPEGs with room for views of half their scale in the largest crops, which their files then give."""
    return write(tmp_path / "large", [(34, 34)] * 22, "jpg")


def batches(images: ImageSet, cache: str, start: int = 0, workers: int = 0, **other: Any) -> list[Any]:
    order = {"batch_size": 4, "seed": 3, "steps": 12, "steps_per_epoch": 5, "transform": TRANSFORM}
    named = {"device": CPU, **order, **other, "start_step": start, "workers": workers}
    return list(cached_loader(cache, images=images, **named))


def assert_equal(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, Tensor):
                assert value.dtype == other[name].dtype
                assert torch.equal(value, other[name]), name
            else:
                assert value == other[name]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where sets were kept, in words, as they are."""
    places: list[str] = []
    monkeypatch.setattr(cached, "_tell", lambda pixels, place, console: places.append(place))
    return places


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["equal", "mixed", "large"])
def test_the_same_batches(name: str, workers: int, kept: list[str], request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(name)
    assert_equal(batches(images, "memory", workers=workers), batches(images, "off"))
    assert kept == ["in memory"]


def test_a_run_resumes_at_any_step(mixed: ImageSet, kept: list[str]) -> None:
    whole = batches(mixed, "off")
    for start in (1, 2):
        assert_equal(batches(mixed, "memory", start), whole[start:])
    assert kept == ["in memory"] * 2


def test_unreadable_images_are_replaced_and_told_alike(mixed: ImageSet, kept: list[str]) -> None:
    for index in (0, 7, 8):
        Path(mixed.paths[index]).write_bytes(Path(mixed.paths[index]).read_bytes()[: 99 * (index > 0)])
    one = batches(mixed, "off")
    assert sum(len(batch["bad"]) for batch in one) > 3
    assert_equal(batches(mixed, "memory", workers=1), one)
    assert kept


def test_files_are_not_read_again(equal: ImageSet) -> None:
    before = batches(equal, "off")
    loader = cached_loader(
        "memory", CPU, equal, TRANSFORM, batch_size=4, seed=3, start_step=0, steps=12, steps_per_epoch=5,
        workers=0,
    )  # fmt: skip
    for path in equal.paths:
        Path(path).unlink()
    assert_equal(list(loader), before)


@pytest.mark.parametrize("order", ["r", "w", "rw", "wr", "rwr", "wRr", "rRw", "Rr"])
def test_large_crops_of_jpegs_come_from_their_files(large: ImageSet, order: str) -> None:
    """They are decoded at half the size there until the whole is wanted; memory holds other pixels."""
    cuts = {"r": Cut((0, 0, 34, 34), 16), "R": Cut((0, 0, 34, 34), 8), "w": Cut((1, 2, 30, 31), 16)}
    kept = large.keeping(cached._InMemory(decoded(large)))
    with kept.opened(3) as ours, large.opened(3) as theirs:
        for name in order:
            assert torch.equal(ours.crops([cuts[name]])[0], theirs.crops([cuts[name]])[0])
    whole = Picture(np.array(large.read(3))).crops([cuts["r"]])[0]
    with kept.opened(3) as picture:
        assert not torch.equal(whole, picture.crops([cuts["r"]])[0])


def test_a_share_of_each_batch(equal: ImageSet) -> None:
    shared = batches(equal, "memory", share=(1, 2))
    whole = batches(equal, "off")
    assert [batch["index"].tolist() for batch in shared] == [batch["index"][2:].tolist() for batch in whole]


def test_transforms_that_cut_nothing(equal: ImageSet, kept: list[str]) -> None:
    ours = batches(equal, "memory", transform=WholePicture())
    assert_equal(ours, batches(equal, "off", transform=WholePicture()))
    assert kept == ["in memory"]


# ------------------------------------------------------------------------------------- on the device


@pytest.mark.parametrize("damaged", [False, True])
def test_whole_batches_are_the_same(
    equal: ImageSet, damaged: bool, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, walked through on the CPU."""
    if damaged:
        Path(equal.paths[5]).write_bytes(Path(equal.paths[5]).read_bytes()[:99])
    monkeypatch.setattr(cached, "_fits", lambda *known: True)
    ours = batches(equal, "memory")
    assert kept == ["on cpu"]
    assert_equal(ours, batches(equal, "off"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_whole_batches_on_a_gpu_are_the_same(equal: ImageSet, kept: list[str]) -> None:
    ours = batches(equal, "memory", device=torch.device("cuda"))
    assert kept == ["on cuda"]
    assert ours[0]["first"].is_cuda
    on_host = [
        {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()}
        for batch in ours
    ]
    assert_equal(on_host, batches(equal, "off"))


def test_a_device_takes_what_fits_and_no_reduced_views(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 4 * 3 * 40 * 30 * 2
    monkeypatch.setattr(cached, "free_device_memory", lambda device: free)
    pixels, device = DecodedImages(np.full((2, 2), 40, np.int32), np.zeros(2, np.bool_)), torch.device("cuda")

    def fits(height: int, width: int, side: int) -> bool:
        return cached._fits(pixels, (height, width), {"image": RandomResizedCrop(side)}, device)

    assert fits(40, 30, 32)
    assert not fits(40, 31, 32)
    assert fits(40, 30, 15)  # of PNGs, which come at one scale only
    pixels.reducible[1] = True
    assert not fits(40, 30, 15)
    assert fits(40, 30, 16)


# --------------------------------------------------------------------------------------- where it pays


def decoded(images: ImageSet, limit: int = 10**9, stop: Callable[[], bool] = lambda: False) -> Any:
    with SILENT.bar("", len(images)) as bar:
        return decode_all(images, limit, 0, SILENT, bar, stop)


def test_decoding_ends_at_the_limit_and_on_request(mixed: ImageSet) -> None:
    exactly = sum(3 * width * height for width, height in map(mixed.size, range(len(mixed))))
    assert decoded(mixed, exactly).bytes == exactly
    assert decoded(mixed, exactly - 1) is None
    assert decoded(mixed, stop=lambda: True) is None


def test_files_are_read_where_memory_would_not_pay(
    equal: ImageSet, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches(equal, "memory", start=3)  # less than two epochs to go
    batches(equal, "memory", stop=lambda: True)
    monkeypatch.setattr(cached, "free_memory", lambda: 4 * 22 * 3 * 20 * 18 - 4)
    batches(equal, "memory")
    assert kept == []
    monkeypatch.setattr(cached, "free_memory", lambda: 4 * 22 * 3 * 20 * 18)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)  # the other process wants as much
    batches(equal, "memory")
    assert kept == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    batches(equal, "memory")
    assert kept == ["in memory"]


def test_photos_far_larger_than_the_views_stay_files(tmp_path: Path, kept: list[str]) -> None:
    photos = write(tmp_path / "photos", [(120, 100)] * 22, "jpg")
    assert_equal(batches(photos, "memory"), batches(photos, "off"))
    assert kept == []
    batches(write(tmp_path / "drawings", [(120, 100)] * 22), "memory")
    assert kept == ["in memory"]


def test_what_it_takes_is_said(equal: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    Path(equal.paths[5]).write_bytes(b"")
    batches(equal, "memory", console=Console())
    text = "21 images stay decoded, 0.0 MB in memory; --cache off reads the files again\n"
    assert capsys.readouterr().err == text


def test_nothing_readable_is_refused_as_ever(equal: ImageSet) -> None:
    for path in equal.paths:
        Path(path).write_bytes(Path(path).read_bytes()[:99])
    with pytest.raises(UserError, match="21 images in a row can't be read"):
        batches(equal, "memory")


# ------------------------------------------------------------------------------------- the pixels


def test_pixels_of_any_size_in_blocks(mixed: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.data.loading.decoded.ALLOCATION", 3 * 50 * 50)
    monkeypatch.setattr("sslkit.data.loading.decoded._CHUNK", 3)
    pixels = decoded(mixed)
    assert len(pixels._blocks) > 3
    assert pixels.equal_size() is None
    for index in range(len(mixed)):
        assert np.array_equal(pixels[index].numpy(), np.asarray(mixed.read(index)))
    again = pickle.loads(pickle.dumps(pixels))
    assert torch.equal(again[21], pixels[21])


def test_equal_images_as_one_tensor(equal: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(equal.paths[4]).write_bytes(b"")
    monkeypatch.setattr("sslkit.data.loading.decoded._UPLOAD", 4)
    monkeypatch.setattr("sslkit.data.loading.decoded._CHUNK", 3)  # several to a block
    pixels = decoded(equal)
    assert pixels.equal_size() == (18, 20)
    whole = pixels.stacked(18, 20, CPU)
    assert whole.shape == (22, 3, 18, 20)
    assert not whole[4].any()
    for index in (0, 3, 21):
        assert np.array_equal(whole[index].permute(1, 2, 0).numpy(), np.asarray(equal.read(index)))
    boxes = torch.tensor([[2, 1, 15, 12]])
    view = crop_resize_batch(whole[3:4], boxes, torch.tensor([True]), 8)
    assert torch.equal(view[0], Picture(np.array(equal.read(3))).crops([Cut((2, 1, 15, 12), 8, True)])[0])


def test_an_untouched_block_is_not_taken() -> None:
    before = memory_of_this_process()
    pixels = DecodedImages(np.zeros((1, 2), np.int32), np.zeros(1, np.bool_))
    pixels._blocks.append(torch.empty(ALLOCATION, dtype=torch.uint8))
    assert memory_of_this_process() - before < ALLOCATION / 4


def memory_of_this_process() -> int:
    """Resident bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        pytest.skip("/proc is Linux's")


# ----------------------------------------------------------------------------------- what is free


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemFree:   1000 kB\nMemAvailable:    5000 kB\n"
V2 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/memory.max": "max\n",
    "sys/fs/cgroup/memory.current": "1\n",
}
V1 = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": MEMINFO}, 5000 * 1024),
        (V2, 5000 * 1024),
        (
            V2
            | {
                "sys/fs/cgroup/a/memory.max": "100000\n",
                "sys/fs/cgroup/a/memory.current": "70000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 7000\n",
            },
            37000,
        ),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "10\n", "sys/fs/cgroup/a/b/memory.current": "70\n"}, 0),
        (
            V1
            | {
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "3000\n",
                "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 100\n",
            },
            2100,
        ),
    ],
)
def test_free_memory_obeys_every_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert memory.free_memory(machine(tmp_path, files)) == expected


def test_the_cpu_has_no_device_memory() -> None:
    assert memory.free_device_memory(CPU) == 0
