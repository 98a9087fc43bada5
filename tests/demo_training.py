"""The training part of `make demo`: a tiny 3-D U-Net learns where segments are, on crops from a service.

``python -m tests.demo_training PICTURE`` asks the service that ``PRISMCACHE_URL`` names, as any training script would.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from prismcache import PrismClient
from prismcache.torch import PrismDataset

STEPS = 50
BATCH = 2
PATCH = (16, 48, 48)


class UNet(nn.Module):
    """Two levels, (N, 1, Z, Y, X) to logits of the same shape; Z is halved too."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = _convolutions(1, width)
        self.bottom = _convolutions(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.out = nn.Sequential(_convolutions(2 * width, width), nn.Conv3d(width, 1, 1))

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        fine = self.down(raw)
        coarse = self.bottom(nn.functional.max_pool3d(fine, 2))
        return self.out(torch.cat([fine, self.up(coarse)], dim=1))


def _convolutions(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1), nn.ReLU()
    )


def scaled(raw: np.ndarray) -> np.ndarray:
    """Raw uint8 as float32 around 0."""
    return raw.astype(np.float32) / 32 - 1


def batches(dataset: PrismDataset, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`count` batches, drawn anew for as long as it takes."""
    loader = DataLoader(dataset, batch_size=BATCH)
    while True:
        for batch in loader:
            if count == 0:
                return
            count -= 1
            yield batch


def train(dataset: PrismDataset) -> UNet:
    """Fit a U-Net to where the labels are not 0, and say how it goes."""
    net = UNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=6e-3)
    begin = time.perf_counter()
    for step, (raw, labels) in enumerate(batches(dataset, STEPS), start=1):
        loss = nn.functional.binary_cross_entropy_with_logits(net(raw), (labels > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}  {time.perf_counter() - begin:4.1f} s", flush=True)
    return net


def picture(raw: torch.Tensor, labels: torch.Tensor, prediction: torch.Tensor) -> Image.Image:
    """The middle section: raw, labels (a colour each) and prediction, side by side, three pixels a voxel."""
    z = raw.shape[-3] // 2
    colours = np.random.default_rng(0).integers(64, 256, (4096, 3), np.uint8)
    colours[0] = 0
    panels = [_grey(raw[0, z]), colours[labels[0, z].numpy() % len(colours)], _grey(prediction[0, z])]
    gap = np.full((panels[0].shape[0], 4, 3), 255, np.uint8)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    return Image.fromarray(row.repeat(3, axis=0).repeat(3, axis=1))


def _grey(section: torch.Tensor) -> np.ndarray:
    low, high = section.min(), section.quantile(0.98)
    return np.repeat(((section - low) / (high - low)).clip(0, 1).mul(255).byte().numpy()[..., None], 3, axis=2)


def main() -> None:
    """Train, then show one patch that is as large as a crop."""
    torch.manual_seed(0)
    with PrismClient() as client:
        crops = [0, 1]
        dataset = PrismDataset(client, "instance", crops, patch_shape=PATCH, raw_transform=scaled, cache="ram")
        net = train(dataset)
        whole = PrismDataset(client, "instance", crops[0], patch_shape=(32, 136, 144), raw_transform=scaled)
        raw, labels = whole[0]
    with torch.no_grad():
        prediction = torch.sigmoid(net(raw[None])[0])
    right = ((prediction > 0.5) == (labels > 0)).float().mean().item()
    place = Path(sys.argv[1])
    picture(raw, labels, prediction).save(place)
    print(f"{right:.0%} of the voxels are told right; raw, labels and prediction: {place}")


if __name__ == "__main__":
    main()
