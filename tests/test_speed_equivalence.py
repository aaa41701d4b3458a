"""What makes the model fast leaves its numbers where the plain formulas have them."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from modules import layers, ops
from modules.convolutions import group_norm_gradients, keep_layout, norm_silu_conv, padded_conv, upsampled_conv
from modules.perceptual import VGG19, PerceptualLoss
from modules.warp import Warped, identity_grid, resize, resize_read, warp
from support import hardware
from tests.support.compiled import assert_compiled_steps_are_the_same
from tests.support.one_step import assert_same_step, one_step
from tests.support.tiny import ROOT, tiny

CPU = torch.device('cpu')


def gradients(output, *inputs):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def assert_all_close(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_norm_silu_conv_is_one_after_the_other(layout):
    norm, conv = layers.group_norm(8, 4), torch.nn.Conv2d(8, 3, 3, padding=1)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 6, 5).to(memory_format=layout).requires_grad_()
    inputs = x, norm.weight, norm.bias, conv.weight, conv.bias
    assert_all_close(gradients(norm_silu_conv(x, norm, conv), *inputs), gradients(conv(F.silu(norm(x))), *inputs))
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(norm_silu_conv(x, norm, conv), conv(F.silu(norm(x))))
        assert torch.equal(x, before)


@pytest.mark.parametrize('size', [(4, 6), (32, 40)], ids=['plain', 'folded'])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_an_upsampled_convolution_is_one_after_the_other(size, layout):
    conv = torch.nn.Conv2d(8, 3, 3, padding=1).to(memory_format=layout)
    x = torch.randn(2, 8, *size).to(memory_format=layout)
    wanted = conv(F.interpolate(x, scale_factor=2, mode='nearest'))
    with torch.inference_mode():
        torch.testing.assert_close(upsampled_conv(x, conv), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('remade, plain, conv', [
    (upsampled_conv, lambda x, conv: conv(F.interpolate(x, scale_factor=2)), torch.nn.Conv2d(8, 3, 3, padding=1)),
    (padded_conv, lambda x, conv: conv(F.pad(x, (0, 1, 0, 1))), torch.nn.Conv2d(8, 3, 3, stride=2))],
    ids=['upsampled', 'padded'])
def test_a_convolution_of_what_is_made_again_is_the_plain_one(remade, plain, conv, layout):
    """To the bit, forward: rounding too is that of training as it was. And it keeps x, not what it makes of x."""
    x = torch.randn(2, 8, 12, 10).to(memory_format=layout).requires_grad_()
    inputs = x, conv.weight, conv.bias
    assert torch.equal(remade(x, conv), plain(x, conv))
    assert_all_close(gradients(remade(x, conv), *inputs), gradients(plain(x, conv), *inputs))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        remade(x, conv)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs}


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('groups', [1, 4, 8])
def test_group_norm_gradients_are_autograds(layout, groups):
    x = (torch.randn(3, 8, 6, 5) + 1).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
    gradient = torch.randn(3, 8, 6, 5).to(memory_format=layout)
    wanted = torch.autograd.grad(F.group_norm(x, groups, weight, bias, eps=1e-6), (x, weight, bias), gradient)
    x, weight, bias = x.detach(), weight.detach(), bias.detach()
    _, mean, rstd = torch.native_group_norm(x, weight, bias, 3, 8, 30, groups, 1e-6)
    found = group_norm_gradients(gradient, x, mean, rstd, weight)
    assert_all_close(found, wanted)
    assert found[0].stride() == x.stride()


def test_gradients_keep_the_layout():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    taps = x * 1, x * 1
    keep_layout(taps[0])
    seen = []
    for tap in taps:
        tap.register_hook(lambda gradient: seen.append(gradient.stride()))
        tap.backward(torch.randn(2, 3, 4, 5))
    assert seen == [x.stride(), torch.empty(2, 3, 4, 5).stride()]
    keep_layout(torch.zeros(2, 3, 4, 5))           # nothing to do without a gradient


@pytest.mark.parametrize('heads, width', [(1, 48), (4, 4)])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('count', [(10, 7), (1024, 512)], ids=['few', 'many'])
def test_attention_is_pytorchs(heads, width, masked, count):
    """Of frames; and of training, forward to the bit."""
    query, keys, values = (torch.randn(2, tokens, heads, width).transpose(1, 2).requires_grad_()
                           for tokens in (count[0], count[1], count[1]))
    mask = torch.rand(2, 1, 1, count[1]) > 0.5 if masked else None
    if masked:
        mask[..., 0] = True                        # one at least is read
    wanted = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    found = ops.attention(query, keys, values, mask)
    assert torch.equal(found, wanted)
    assert_all_close(gradients(found, query, keys, values), gradients(wanted, query, keys, values))
    with torch.inference_mode():
        torch.testing.assert_close(ops.attention(query, keys, values, mask), wanted.detach())


@pytest.mark.parametrize('size, pixels', [((8, 8), (16, 16)), ((12, 17), (24, 34)), ((19, 18), (40, 36)),
                                          ((20, 18), (40, 36)), ((64, 64), (40, 36))])
def test_pixels_that_resizing_reads_are_enough(size, pixels):
    """Less than half, for which few pixels are read, about half, and larger."""
    x = torch.randn(2, 5, 40, 36).to(memory_format=torch.channels_last).requires_grad_()
    flow = (identity_grid((20, 20), x) + 0.02 * torch.randn(2, 20, 20, 2)).requires_grad_()
    read = Warped(x, flow).read_for(size)
    assert read.shape[-2:] == pixels
    found, wanted = resize_read(read.sin(), (40, 36), size), resize(warp(x, flow).sin(), size)
    for ours, theirs in zip(gradients(found, x, flow), gradients(wanted, x, flow), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize('threads', [1, 2])
def test_pointwise_layers_are_those_of_torch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for ours, theirs, x in ((ops.TokenLinear(8, 5), F.linear, torch.randn(2, 12, 8)),
                                (ops.Conv1x1(8, 5), F.conv2d, torch.randn(2, 8, 4, 3))):
            inputs = x.requires_grad_(), ours.weight, ours.bias
            assert_all_close(gradients(ours(x), *inputs), gradients(theirs(*inputs), *inputs))
            assert ours(x).stride() == theirs(*inputs).stride()
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope='module')
def plain_step():
    return one_step(tiny(), layout=torch.contiguous_format)


def test_channels_last_changes_no_number(plain_step):
    assert_same_step(one_step(tiny()), plain_step)


def test_the_perceptual_loss_is_that_of_its_formula():
    network, (first, second, target) = VGG19(), torch.rand(3, 2, 3, 32, 32) * 2 - 1
    loss = PerceptualLoss(network, (1, 0.5))
    terms, found = loss.value_and_gradient([first, second], target)
    for prediction, by_level, gradient in zip((first, second), terms, found, strict=True):
        prediction.requires_grad_()
        plain = torch.stack([torch.stack([F.l1_loss(*pair)
                                          for pair in zip(network(down(prediction)), network(down(target)))])
                             for down in loss.pyramid])
        torch.testing.assert_close(by_level, plain.detach())
        torch.testing.assert_close(gradient, *torch.autograd.grad(plain.sum(), prediction))


def test_checkpointing_changes_no_number(plain_step):
    blocks = []

    def change(model):
        model.enable_activation_checkpointing()
        blocks.extend(model.outer_blocks())
    assert_same_step(one_step(tiny(), change), plain_step)
    assert len(blocks) > 20


def test_denormals_are_flushed_in_every_thread():
    code = ('import torch; from support import hardware; hardware.prepare_cpu(); torch.set_num_threads(2); '
            'x = torch.full((1 << 22,), 1e-30); assert (x * 1e-10 == 0).all()')
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_bf16_and_compile_fall_back_with_a_reason(monkeypatch, caplog):
    monkeypatch.setattr(hardware, 'has_bf16', lambda device: False)
    monkeypatch.setattr(hardware.shutil, 'which', lambda name: None)
    config = hardware.adapted(tiny('train_params.precision=bf16', 'train_params.compile=true'), CPU)
    assert config.train_params.precision == 'fp32' and not config.train_params.compile
    assert 'would only emulate bf16' in caplog.text and 'no C++ compiler' in caplog.text


def test_compiled_blocks_have_no_breaks_and_settle_in_the_first_step():
    assert_compiled_steps_are_the_same(torch.device('cpu'))
