"""Our networks: the noisy code is the one way to the picture, and the baseline has the published size."""

import pytest
import torch

from export.networks import Sanitizer, Unet


def test_the_decoder_sees_the_noisy_code_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one code for all, all faces come out the same: there is no way around the noise."""
    torch.manual_seed(0)
    sanitizer = Sanitizer(16, 4).eval()
    faces, alpha, z = torch.rand(2, 3, 112, 112), torch.ones(2, 1), torch.randn(1, 4).expand(2, -1)
    with torch.no_grad():
        first, second = sanitizer(faces, z, alpha)
        assert not torch.equal(first, second)
        monkeypatch.setattr(
            sanitizer.privatizer, "forward", lambda description, dial: torch.zeros(len(description), 4, 1, 1)
        )
        first, second = sanitizer(faces, z, alpha)
        torch.testing.assert_close(first, second)
        assert not torch.allclose(sanitizer(faces, -z, alpha)[0], first)


def test_the_parts_of_the_training_are_the_sanitizer() -> None:
    torch.manual_seed(0)
    s = Sanitizer(16, 4).eval()
    faces, alpha, z = torch.rand(2, 3, 112, 112), torch.tensor([[0.3], [0.9]]), torch.randn(2, 4)
    with torch.no_grad():
        description = s.encoder(torch.nn.functional.pixel_unshuffle(faces, 4))[..., 0, 0]
        quiet, noisy = s.privatize(description, None, alpha), s.privatize(description, z, alpha)
        torch.testing.assert_close(noisy - quiet, alpha * z)
        torch.testing.assert_close(s.decode(noisy, alpha), s(faces, z, alpha))


def test_the_baseline_has_the_authors_size() -> None:
    """0.946 GMAC, as published; the maps of the dial and of the noise add half a per cent."""
    counted = []
    net = Unet()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda m, x, y: counted.append(m.weight.numel() * y.shape[2] * y.shape[3]))
    net(torch.rand(1, 3, 112, 112), torch.randn(1, 64), torch.ones(1, 1))
    assert sum(counted) / 1e9 == pytest.approx(0.946, rel=0.1)
