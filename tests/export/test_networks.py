"""Our networks: the noisy code is the one way to the picture, and the baseline has the published size."""

import pytest
import torch

from export.networks import Decoder, Encoder, Privatizer, Sanitizer, Shape, Unet, rounded, unshuffle
from export.resnet import ResidualEncoder
from tests.support import ROOT


def test_the_decoder_sees_the_noisy_code_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one code for all, all faces come out the same: there is no way around the noise."""
    torch.manual_seed(0)
    sanitizer = Sanitizer(16, Shape(code=4)).eval()
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
    s = Sanitizer(16, Shape(code=4)).eval()
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


def test_a_unit_code_has_the_same_power_for_each_face() -> None:
    torch.manual_seed(0)
    privatizer = Privatizer(16, 4, hidden=8, unit=True)
    description = torch.randn(5, 31, 1, 1) * torch.tensor([0.0, 1e-2, 1.0, 10.0, 1e3]).view(-1, 1, 1, 1)
    description.requires_grad_()
    code = privatizer(description, torch.rand(5, 1, 1, 1))
    torch.testing.assert_close(code[1:].square().mean(1).flatten(), torch.ones(4))
    assert code[0].abs().max() == 0, "nothing is not divided by nothing"
    code.sum().backward()
    assert description.grad is not None
    assert description.grad.isfinite().all()


def test_two_hidden_layers_of_the_privatizer_learn_beside_the_linear_map() -> None:
    torch.manual_seed(0)
    privatizer = Privatizer(16, 4, hidden=8)
    assert [m.out_channels for m in privatizer.children() if isinstance(m, torch.nn.Conv2d)] == [4, 8, 8, 4]
    description, dial = torch.randn(3, 31, 1, 1), torch.rand(3, 1, 1, 1)
    torch.testing.assert_close(privatizer(description, dial), privatizer.linear(description))
    torch.nn.init.normal_(privatizer.output.weight)
    assert not torch.allclose(privatizer(description, dial), privatizer(description, dial / 2))


def test_a_rounded_code_has_the_steps_of_8_bits_and_an_unrounded_gradient() -> None:
    torch.manual_seed(0)
    code = (3 * torch.randn(400, 8) + 1).requires_grad_()
    whole = rounded(code, 8)
    step = (code.max() - code.min()).item() / 255
    assert len(whole.unique()) <= 256 + 64, "but for the last bit"
    assert (whole - code).abs().max() <= step / 2 + 1e-5 + step * 0.5
    torch.testing.assert_close((whole / step).round() * step, whole, atol=1e-4, rtol=0)
    whole.sum().backward()
    torch.testing.assert_close(code.grad, torch.ones_like(code))
    assert rounded(code, 0) is code
    positive = rounded(code.detach().abs() + 5, 8)
    assert positive.min() > 0, "zero is one of the steps, whatever the smallest number"


def multiplications(net: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Those of the convolutions for one face, in millions."""
    counted = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda m, x, y: counted.append(m.weight.numel() * y.shape[2] * y.shape[3]))
    with torch.no_grad():
        net.eval()(*inputs)
    return sum(counted) / 1e6


def test_encoders_have_the_multiplications_that_the_documents_name() -> None:
    face = unshuffle(torch.rand(1, 3, 112, 112))
    small, residual = multiplications(Encoder(143), face), multiplications(ResidualEncoder(399), face)
    resized = 3 * (150 * 112 * 112 + 150 * 112 * 150) / 1e6  # by two matrices
    text = (ROOT / "docs/training.md").read_text()
    assert f'`"small"`: {small:.0f} million' in text
    assert f'`"resnet"`: {residual + resized:.0f} million' in text
    decoder = multiplications(Decoder(64, (96, 96, 64, 32), 256, True), torch.rand(1, 64, 1, 1), torch.rand(1, 1, 1, 1))
    assert residual + resized + decoder < 600, "what a board has time for"


def test_coarse_colour_is_one_for_all_pixels_of_a_cell_and_smooth_between_cells() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, (16, 12, 8, 8), coarse_colour=True)
    assert decoder.colour
    torch.nn.init.normal_(decoder.head.weight, std=0.003)
    torch.nn.init.normal_(decoder.colour.weight, std=0.003)
    with torch.no_grad():
        y = decoder(torch.randn(4, 8, 1, 1), torch.zeros(4, 1, 1, 1))
    cells = y.reshape(4, 3, 4, 56, 56)
    assert cells.min() > 0, "nothing is clipped, which would change colours"
    assert cells.max() < 1
    chroma = cells - cells.mean(1, keepdim=True)
    torch.testing.assert_close(chroma, chroma[:, :, :1].expand_as(chroma), atol=1e-6, rtol=0)
    brightness = cells.mean(1)
    assert brightness.std(1).mean() > 0.01, "each pixel has a brightness of its own"
    steps = [(part[..., 1:] - part[..., :-1]).std() / part.std() for part in (chroma[:, :, 0], brightness[:, 0])]
    assert steps[0] < 0.5 * steps[1]


def test_what_adds_colour_to_brightness_never_learns() -> None:
    decoder = Decoder(8, coarse_colour=True)
    decoder(torch.randn(2, 8, 1, 1), torch.zeros(2, 1, 1, 1)).sum().backward()
    assert decoder.sum
    assert decoder.sum.weight.grad is None


def test_a_decoder_that_learns_under_8_bits_draws_the_same_in_the_end_but_for_rounding() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, (16, 12, 8, 8))
    torch.nn.init.normal_(decoder.head.weight, std=0.02)
    code, alpha = torch.randn(4, 8, 1, 1), torch.zeros(4, 1, 1, 1)
    with torch.no_grad():
        plain = decoder(code, alpha)
        decoder.bits = 8
        rounded_off = decoder(code, alpha) - plain
        assert 0 < rounded_off.abs().max() < 0.05
        torch.testing.assert_close(decoder.eval()(code, alpha), plain, msg="the model file has its own rounding")
    decoder.train()(code, alpha).sum().backward()
    assert decoder.expand.weight.grad is not None, "the gradient passes"
    assert decoder.expand.weight.grad.abs().max() > 0
