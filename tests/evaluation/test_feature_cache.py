"""Kept features come back bit for bit, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sslkit.data.audit.likeness import LIKENESS
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.probe.feature_cache import FeatureCache, encoder_digest, images_digest
from sslkit.evaluation.probe.features import Features
from sslkit.models.encoder import Encoder
from sslkit.models.weights import save

IMAGES = ImageSet(("a", "b", "c", "d"), "letters", (0, 1, 0, 1), ("x", "y"))  # type: ignore[arg-type]
FACTS = {"key": "key", "readouts": '["mean"]'}


def features(looks: bool = True) -> Features:
    """Of three images of four: the second can't be read."""
    kept = torch.tensor([0, 2, 3])
    seen = np.frombuffer(np.random.default_rng(0).bytes(3 * LIKENESS.itemsize), LIKENESS) if looks else None
    return Features(
        {"mean": torch.randn(3, 5), "cls": torch.randn(3, 2)}, torch.tensor([0, 0, 1]), kept, seen
    )


def test_there_and_back(tmp_path: Path) -> None:
    cache, given = FeatureCache(tmp_path / "new"), features()
    assert cache.load("key", IMAGES) is None
    cache.save("key", given)
    found = cache.load("key", IMAGES, looks=True)
    assert found is not None
    assert list(found.vectors) == ["mean", "cls"]  # the first of equal ones is taken
    assert all(torch.equal(found.vectors[name], given.vectors[name]) for name in given.vectors)
    assert found.labels.tolist() == [0, 0, 1]
    assert torch.equal(found.kept, given.kept)
    assert found.looks is not None
    assert given.looks is not None
    assert found.looks.tobytes() == given.looks.tobytes()
    assert cache.load("other", IMAGES) is None


def test_without_looks_it_is_no_answer_to_who_wants_them(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.save("key", features(looks=False))
    assert cache.load("key", IMAGES) is not None
    assert cache.load("key", IMAGES, looks=True) is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mean", torch.randn(2, 5)),  # too few rows
        ("mean", torch.randn(3)),
        ("mean", torch.randn(3, 5).double()),
        ("kept", torch.tensor([0, 2, 4])),  # there is no image 4
        ("kept", torch.tensor([0, 2, 2])),
        ("kept", torch.tensor([0.0, 2.0, 3.0])),
        ("looks", torch.zeros(3, 7, dtype=torch.uint8)),
    ],
)
def test_what_does_not_fit_is_not_taken(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = {"mean": torch.randn(3, 5), "kept": torch.tensor([0, 2, 3]), name: tensor}
    save(tensors, tmp_path / "key.safetensors", FACTS)
    assert FeatureCache(tmp_path).load("key", IMAGES) is None
    save({"mean": torch.randn(3, 5), "kept": torch.tensor([0, 2, 3])}, tmp_path / "key.safetensors", FACTS)
    assert FeatureCache(tmp_path).load("key", IMAGES) is not None


def test_damage_and_another_name_are_seen(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.save("key", features())
    file = tmp_path / "key.safetensors"
    (tmp_path / "other.safetensors").write_bytes(file.read_bytes())
    assert cache.load("other", IMAGES) is None
    file.write_bytes(file.read_bytes()[:-5])
    assert cache.load("key", IMAGES) is None


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "folder")
    cache.save("key", features())
    assert cache.load("key", IMAGES) is None
    FeatureCache(None).save("key", features())


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    for number in range(4):
        cache.save(f"{number}", features())
        os.utime(tmp_path / f"{number}.safetensors", (number, number))
    assert cache.load("0", IMAGES) is not None  # used just now
    size = (tmp_path / "0.safetensors").stat().st_size
    cache._forget_(2 * size)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["0", "3"]


def test_every_weight_and_both_statistics_count() -> None:
    def make() -> Encoder:
        torch.manual_seed(0)
        return Encoder("test_resnet", 32)

    known = encoder_digest(make())
    assert encoder_digest(make()) == known
    changed = []
    for name in ("mean", "std", list(dict(make().named_parameters()))[-1]):
        encoder = make()
        with torch.no_grad():
            encoder.state_dict()[name].view(-1)[0] += 1e-3
        changed.append(encoder_digest(encoder))
    assert known not in changed


def test_a_file_written_again_counts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1234")
    images = ImageSet((str(tmp_path / "a.png"),), "one", (0,), ("x",))  # type: ignore[arg-type]
    before = images_digest(images)
    (tmp_path / "a.png").write_bytes(b"5678")
    later = (tmp_path / "a.png").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "a.png", ns=(later, later))
    assert images_digest(images) != before
