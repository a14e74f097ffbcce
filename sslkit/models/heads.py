"""What stands between an encoder and a loss: projections, prototypes, decoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslkit.models.init import initialize_linear_, sines_and_cosines
from sslkit.models.norm import BatchNorm1d


def mlp(widths: Sequence[int], *, batch_norm: bool, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1]; after each but the last batch norm (if so), activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        # A batch norm brings its own shift: the layer's bias would do nothing.
        layers.append(nn.Linear(before, after, bias=not batch_norm))
        layers += [BatchNorm1d(after), activation()] if batch_norm else [activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class PixelDecoder(nn.Sequential):
    """MFM's and SimMIM's decoder, a 1 × 1 convolution and PixelShuffle: [B, D, h, w] → [B, 3, h · s, w · s].

    Channel order is (colour, row, column). The convolution keeps its name and its initialisation, but is
    computed as the matrix product that it is: with D = 2048 that takes 51 ms on a CPU instead of 138.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__(nn.Conv2d(width, 3 * stride**2, kernel_size=1), nn.PixelShuffle(stride))

    def forward(self, features: Tensor) -> Tensor:
        convolution: Any = self[0]
        shuffle: Any = self[1]
        batch, _, rows, columns = features.shape
        stride: int = shuffle.upscale_factor
        cells = F.linear(features.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
        pixels = cells.view(batch, rows, columns, 3, stride, stride).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(batch, 3, rows * stride, columns * stride)


class Prototypes(nn.Module):
    """DINO's head: vectors [N, D] → logits [N, K], an MLP to the unit sphere, then products with K rows.

    A row is its direction times its length, as in weight normalisation: with length 1, logits are cosines.

    Args:
        widths: of the vectors, the middle layers and the sphere: (D, 2048, 2048, 256) officially.
        outputs: K.
        norm_last_layer: lengths stay 1 (official).
    """

    def __init__(
        self, widths: Sequence[int], outputs: int, *, batch_norm: bool, norm_last_layer: bool
    ) -> None:
        super().__init__()
        self.mlp = mlp(widths, batch_norm=batch_norm, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # Of torch's Linear, like the official code: the longer a direction, the slower it turns.
        bound = widths[-1] ** -0.5
        self.direction = nn.Parameter(torch.empty(outputs, widths[-1]).uniform_(-bound, bound))
        self.length = nn.Parameter(torch.ones(outputs, 1), requires_grad=not norm_last_layer)

    def rows(self) -> Tensor:
        """The last layer's weight [K, widths[-1]]."""
        return F.normalize(self.direction, dim=1) * self.length

    def forward(self, vectors: Tensor, rest: bool = False) -> Tensor:
        """float32 [N, K]; with `rest` the rows get no gradient at all, and optimizers pass over them."""
        points = self.mlp(vectors)
        with torch.autocast(points.device.type, enabled=False):
            rows = self.rows().detach() if rest else self.rows()
            return F.linear(F.normalize(points.float(), dim=1), rows)


class TokenDecoder(nn.Module):
    """MAE's decoder: a narrow transformer over all patches, a mask token where none was encoded.

    Args:
        inputs: width of the encoder's tokens.
        width, depth, heads: of the decoder.
        grid: rows and columns of patches that it is built for.
        outputs: numbers that are predicted for a patch.
    """

    position: Tensor

    def __init__(
        self, inputs: int, width: int, depth: int, heads: int, grid: tuple[int, int], outputs: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs)
        self.register_buffer("position", sines_and_cosines(grid, width)[None])
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(initialize_linear_)

    def forward(self, prefix: Tensor, visible: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Prefix [B, p, D], visible [B, L, D], places of patches among the shuffled [B, N] → [B, N, outputs].

        Positions are resampled for a grid other than the one the decoder was built for, as the encoder's.
        """
        x = self.embed(visible)
        missing = restore.shape[1] - x.shape[1]
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), missing, -1)], dim=1)
        x = x.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))  # back in raster order
        position = resample_abs_pos_embed(self.position, list(grid), list(self.grid), num_prefix_tokens=0)
        x = torch.cat([self.embed(prefix), x + position], dim=1)  # the prefix has position zero
        outputs: Tensor = self.head(self.norm(self.blocks(x))[:, prefix.shape[1] :])
        return outputs
