"""Every optimisation switched off in its turn: the plain formula in its place."""

import statistics
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks.speed.turns import peak_memory
from benchmarks.speed.work import Animation, Training
from modules import convolutions, dense_motion, layers, losses, products, retrieval, synergy, warp
from modules.autoencoder import Encoder
from modules.codebook import Codebook, Quantized, nearest
from modules.perceptual import PerceptualLoss
from support import hardware


@contextmanager
def plain_layout(work):
    network = work.step.objective if isinstance(work, Training) else work.model
    network.to(memory_format=torch.contiguous_format)
    yield
    network.to(memory_format=torch.channels_last)


@contextmanager
def freed_memory(work):
    hardware._allocate(2 ** 17, 2 ** 17)             # glibc's defaults
    yield
    hardware.keep_freed_memory()


@contextmanager
def one_by_one(work):
    """The update parameter by parameter."""
    group, = work.step.state.optimizer.param_groups
    together = {name: group[name] for name in ('fused', 'foreach')}
    with patch.object(torch, '_foreach_lerp_', lambda old, new, share: [a.lerp_(b, share) for a, b in zip(old, new)]):
        group |= dict.fromkeys(together, False)
        yield
        group |= together


def plain(*substitutes):
    """A context that puts plain formulas in the place of (owner, name)."""
    @contextmanager
    def switched(work):
        with ExitStack() as stack:
            for owner, name, substitute in substitutes:
                stack.enter_context(patch.object(owner, name, substitute))
            yield
    return switched


def attend(substitute):
    return plain((layers, 'attention', substitute), (retrieval, 'attention', substitute))


def attention_with_weights(query, keys, values, mask=None):
    weights = query @ keys.mT / query.shape[-1] ** 0.5
    if mask is not None:
        weights = weights.masked_fill(~mask, float('-inf'))
    return weights.softmax(-1) @ values


def native_group_norm_gradients(gradient, x, mean, rstd, weight):
    batch, channels, height, width = x.shape
    return torch.ops.aten.native_group_norm_backward(
        gradient, x, mean, rstd, weight, batch, channels, height * width, mean.shape[1], [True, True, True])


def one_hot_quantize(self, z, scale):
    codes, vectors = self.codes(scale), z.float().permute(0, 2, 3, 1)
    indices = nearest(vectors.detach().flatten(0, 2), codes.detach())
    z_q = (F.one_hot(indices, len(codes)).float() @ codes).view_as(vectors)
    loss = F.mse_loss(z_q, vectors.detach()) + self.commitment * F.mse_loss(vectors, z_q.detach())
    return Quantized(z.detach(), (vectors + (z_q - vectors).detach()).permute(0, 3, 1, 2),
                     indices.view(vectors.shape[:3]), loss)


def project_per_sample(self, query, codes, part, visible=None):
    """Keys and values projected again for every scale and every sample of the batch."""
    again = [rows[None, part].expand(query.shape[0], -1, -1) for rows in codes]
    projected = [layer.cross_attention.context(rows, rows) for layer, rows in zip(self.layers, again)]
    return plain_retrieval(self, query, projected, slice(None), visible)


def passes_apart(self, image):
    halves = [plain_tapped(self, half) for half in image.chunk(2)]
    return [torch.cat(pair) for pair in zip(*(pyramid for pyramid, _ in halves))], torch.cat([tap for _, tap in halves])


def target_again(self, predictions, target):
    found = [plain_perceptual(self, [prediction], target) for prediction in predictions]
    return torch.cat([terms for terms, _ in found]), [gradient for _, (gradient,) in found]


plain_retrieval, plain_tapped = retrieval.Retrieval.forward, Encoder.tapped
plain_perceptual = PerceptualLoss.value_and_gradient

OPTIMISATIONS = {
    'channels last': plain_layout,
    'freed memory kept': freed_memory,
    'residual blocks remember their inputs alone': plain(
        (layers, 'norm_silu_conv', lambda x, norm, conv: conv(F.silu(norm(x))))),
    'fused attention': attend(attention_with_weights),
    'attention head by head': attend(F.scaled_dot_product_attention),
    'upsampling folded into convolutions, or made again': plain(
        (layers, 'upsampled_conv', lambda x, conv: conv(F.interpolate(x, scale_factor=2, mode='nearest')))),
    'codes projected once for all samples': plain(
        (retrieval.Retrieval, 'project', lambda self, codes: [codes] * len(self.layers)),
        (retrieval.Retrieval, 'forward', project_per_sample)),
    'pointwise layers by oneDNN': plain((products, 'pointwise', F.conv2d),
                                        (products.TokenLinear, 'forward', torch.nn.Linear.forward)),
    'warped features where they are read': plain((warp, '_reads_few', lambda full, size: False)),
    'closed-form 2x2 inverse': plain((dense_motion, 'invert_2x2', torch.linalg.inv),
                                     (losses, 'invert_2x2', torch.linalg.inv)),
    'padding made again': plain((layers, 'padded_conv', lambda x, conv: conv(F.pad(x, (0, 1, 0, 1))))),
    'group norm backward by passes': plain((convolutions, 'group_norm_gradients', native_group_norm_gradients)),
    'gradients keep the layout': plain((synergy, 'keep_layout', lambda x: None)),
    'look-up quantisation': plain((Codebook, 'quantize', one_hot_quantize)),
    'one encoder pass for source and driving': plain((Encoder, 'tapped', passes_apart)),
    'target features once': plain((PerceptualLoss, 'value_and_gradient', target_again)),
    'fused Adam, foreach EMA': one_by_one,
}
TRAINING_ONLY = list(OPTIMISATIONS)[-7:]


def ablation(clock, work, repeats, names):
    """What each optimisation is worth, by name.

    time:   of `work` without it over time with it, mean of turns; in each turn with, without, without, with, so that a
            machine that becomes faster or slower meanwhile favours neither
    error:  standard error of that mean; nan for a single turn
    memory: GiB by which the peak is higher without it, median of turns
    """
    again = getattr(work, 'encode', lambda: None)      # what an animation has computed of its source
    unused = TRAINING_ONLY if isinstance(work, Animation) else []
    work()
    worth = {}
    for name in names or OPTIMISATIONS:
        if name in unused:
            continue
        times, memory = [], []
        for _ in range(repeats):
            with_it = [clock(work)[0]]
            lean = peak_memory(clock.device, work)
            with OPTIMISATIONS[name](work):
                again(), work()
                without = [clock(work)[0] for _ in range(2)]
                memory.append(peak_memory(clock.device, work) - lean)
            again(), work()
            with_it.append(clock(work)[0])
            times.append(sum(without) / sum(with_it))
        error = statistics.stdev(times) / repeats ** 0.5 if repeats > 1 else float('nan')
        worth[name] = {'time': statistics.mean(times), 'error': error, 'memory': statistics.median(memory)}
    return worth
