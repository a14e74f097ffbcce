"""The references of the frequency tests agree with the definition and with the documents."""

from __future__ import annotations

import pytest
import torch
from frequency_reference import LOW, canonical, literal_dft, official_corrupt


def test_canonical_image_is_the_documented_one() -> None:
    image = canonical(224)
    assert image.min().item() == pytest.approx(0.050393296, abs=1e-9)
    assert image.max().item() == pytest.approx(0.949992801, abs=1e-9)
    assert image.sum().item() == pytest.approx(75263.925, abs=1e-3)


def test_official_formula_agrees_with_the_definition_of_the_dft() -> None:
    image = canonical(5, 6, channels=1)[0, 0]
    spectrum = literal_dft(image)
    offsets_y = [0, 1, 2, -2, -1]
    offsets_x = [0, 1, 2, -3, -2, -1]
    kept = torch.zeros_like(spectrum)
    for u, y in enumerate(offsets_y):
        for v, x in enumerate(offsets_x):
            if y * y + x * x < 4:
                kept[u, v] = spectrum[u, v]
    low = (literal_dft(kept.conj().real) - 1j * literal_dft(-kept.conj().imag)).conj().real / 30
    got = official_corrupt(image[None, None], LOW, 2, clamp=False)[0, 0]
    assert (got - low).abs().max() < 1e-12
