"""A residual encoder whose convolutions begin from those of dlib's face recognition network.

dlib's network (`dlib_face_recognition_resnet_model_v1` by Davis King, CC0) has learned from millions of faces, and an
encoder that begins there knows more people than any data set here shows. Its layers are those of He et al., "Deep
Residual Learning for Image Recognition" (2016), with average pooling beside each convolution of stride 2. Its last
block is left out: what is read from the four quarters of the maps before it describes strangers better. Dense 3x3
layers run near the peak of int8 kernels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export.errors import NetworkError
from export.onnx_torch import read_graph

DLIB = "id_dlib_resnet"  # among the providers
BOX = (6, 20, 107, 121)  # of the chip: x0, y0, x1, y1; the rows below the chip repeat its last one
SIDE = 150  # pixels of the network's input
GROUPS = ((32, 3), (64, 4), (128, 3), (256, 3))  # channels and blocks


class ResidualEncoder(nn.Module):
    """A face as a description, by a residual network.

    The picture is brought to the network's size by two constant matrices: linear interpolation as the network's own
    contract has it, in operators that every runtime computes alike.
    """

    columns: Tensor
    rows: Tensor

    def __init__(self, outputs: int) -> None:
        """Build the network with random weights; `outputs` is the length of a description."""
        super().__init__()
        x0, y0, x1, y1 = BOX
        self.register_buffer("rows", interpolation(y0, y1), persistent=False)
        self.register_buffer("columns", interpolation(x0, x1).T.contiguous(), persistent=False)
        self.stem = nn.Conv2d(3, GROUPS[0][0], 7, 2)
        blocks: list[ResidualBlock] = []
        inputs, side = GROUPS[0][0], 35
        for number, (channels, count) in enumerate(GROUPS):
            for i in range(count):
                down = number > 0 and i == 0
                blocks.append(ResidualBlock(inputs, channels, side if down else 0))
                inputs, side = channels, side // 2 if down else side
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(inputs, outputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Describe unshuffled pictures [N, 48, 28, 28] in 0..1: [N, outputs, 1, 1]."""
        x = x.reshape(-1, 3, 4, 4, 28, 28).permute(0, 1, 4, 2, 5, 3).reshape(-1, 3, 112, 112)
        x = (self.rows @ x @ self.columns).contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for block in self.blocks:
            x = block(x)
        description: Tensor = self.head(F.avg_pool2d(x, 2))
        return description

    def begin(self, path: Path) -> None:
        """Take the weights of dlib's network.

        Args:
            path: the ONNX file of the network.

        Raises:
            NetworkError: it is another network.
        """
        theirs = _convolutions(path)
        mine = [m for m in (self.stem, *self.blocks.modules()) if isinstance(m, nn.Conv2d)]
        if [tuple(m.weight.shape) for m in mine] != [weight.shape for weight, _ in theirs[: len(mine)]]:
            raise NetworkError(f"{path} is not dlib's face recognition network, from which the encoder begins")
        mean, scale = _normalisation(path)
        with torch.no_grad():
            for m, (weight, bias) in zip(mine, theirs, strict=False):
                assert m.bias is not None
                m.weight.copy_(torch.from_numpy(weight.copy()))
                m.bias.copy_(torch.from_numpy(bias.copy()))
            # a picture in 0..1 instead of (x - mean) / scale
            assert self.stem.bias is not None
            self.stem.bias.sub_((self.stem.weight * torch.tensor(mean).view(1, 3, 1, 1) / scale).sum((1, 2, 3)))
            self.stem.weight.mul_(255 / scale)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; with a stride of 2, beside the mean of 2x2 and channels of zeros."""

    def __init__(self, inputs: int, channels: int, side: int = 0) -> None:
        """Build the block; `side` is that of the maps which a stride of 2 halves, 0 for a stride of 1."""
        super().__init__()
        self.down, self.more = side > 0, channels - inputs
        self.short = side // 2 - (side - 1) // 2 if self.down else 0  # the convolution's maps, to the mean's
        self.first = nn.Conv2d(inputs, channels, 3, 2 if self.down else 1, 0 if self.down else 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size, or of half of it."""
        y = self.second(F.relu(self.first(x)))
        if self.down:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.more))
            y = F.pad(y, (0, self.short, 0, self.short)) if self.short else y
        return F.relu(x + y)


def interpolation(start: int, end: int) -> Tensor:
    """Return the matrix [150, 112] that cuts start..end out of a side of a chip, and resizes it linearly."""
    side = torch.eye(112).unsqueeze(0)
    side = F.pad(side, (0, max(0, end - 112)), mode="replicate")[:, :, start:end]
    return F.interpolate(side, SIDE, mode="linear")[0].T.contiguous()


def _convolutions(path: Path) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return weights and biases of a network's convolutions, in their order."""
    graph = read_graph(path)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    return [
        (numpy_helper.to_array(stored[node.input[1]]), numpy_helper.to_array(stored[node.input[2]]))
        for node in graph.node
        if node.op_type == "Conv"
    ]


def _normalisation(path: Path) -> tuple[list[float], float]:
    """Return what the network's graph takes from its input first, and what it divides by."""
    graph = read_graph(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    subtract, divide = graph.node[:2]
    return stored[subtract.input[1]].flatten().tolist(), float(stored[divide.input[1]].item())
