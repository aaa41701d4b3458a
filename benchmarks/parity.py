"""Do our networks compute what the released implementations compute?

    python -m benchmarks.parity FIXTURE.npz [--config config/vox-256.yaml] [--set key=value ...] [--float64]

The config names the method that the fixture belongs to: vox-256, fomm-vox-256 or mcnet-vox-256.
Fills our networks, through the true checkpoint importer, with weights that follow from their published
names, runs the fixture's inputs, and compares every stored tensor. Exits with 1 if one is out of tolerance.
With --float64 we compute in double precision, so that what differs is the rounding of the fixture alone.
"""

import argparse
import sys
import zlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from config import schema
from modules.build import METHODS, build_discriminator, build_model, build_objective
from modules.layers import from_unit, to_unit
from modules.losses import RandomTransform
from modules.objective import DiscriminatorObjective
from modules.perceptual import VGG19
from modules.published.formats import FORMATS, import_tensors, published_shapes
from modules.published.names import smac_origin
from modules.warp import identity_grid
from support.errors import UserError


class Comparison(NamedTuple):
    """One stored value against ours; `largest` and `mean` are the tolerated absolute differences."""
    name: str
    ours: np.ndarray
    theirs: np.ndarray
    largest: float
    mean: float

    def verdict(self):
        """(largest difference, mean difference, whether both are tolerated)."""
        if self.ours.shape != self.theirs.shape:
            return float('inf'), float('inf'), False
        difference = np.abs(self.ours.astype(np.float64) - self.theirs.astype(np.float64))
        largest, mean = float(difference.max()), float(difference.mean())
        return largest, mean, bool(largest <= self.largest and mean <= self.mean)


# ---------------------------------------------------------------------------- reproducible weights

GAINS = [(('kp.weight', '.mask.weight', '.occlusion.weight'), 3.0), (('jacobian.weight',), 0.25),
         (('refine.convo2.weight',), 0.4)]


def recipe(key, shape):
    """The fixtures' weight for a published tensor: a pure function of its name and shape."""
    shape = tuple(int(side) for side in shape)
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith('running_var'):
        weight = 1 + 0.1 * np.abs(noise)
    elif key.endswith('running_mean'):
        weight = 0.1 * noise
    elif key.endswith(('embedding.weight', '/mbUnit.mb')):
        weight = 0.5 * noise
    elif 'position_emb' in key:
        weight = 0.02 * noise
    elif key.endswith('styleconv.weight'):
        weight = 0 * noise
    elif key.endswith('modulation.bias'):
        weight = 1 + 0.1 * noise
    elif key.endswith('jacobian.bias'):
        weight = np.tile([1., 0., 0., 1.], noise.size // 4) + 0.1 * noise
    elif len(shape) >= 2:
        gain = 2 ** 0.5 if key.startswith('vgg19/') or 'down_blocks' in key or 'up_blocks' in key else 1.0
        for endings, other in GAINS:
            gain = other if key.endswith(endings) else gain
        weight = noise * (gain / np.sqrt(np.prod(shape[2:] if len(shape) == 5 else shape[1:])))
    elif key.endswith('weight'):
        weight = 1 + 0.1 * noise
    else:
        weight = 0.05 * noise
    return from_fixture(np.asarray(weight, dtype=np.float32))


def from_fixture(array):
    """A stored float32 array as a tensor of the precision that we compute in."""
    return torch.from_numpy(array).to(torch.get_default_dtype())


@contextmanager
def float64():
    """Compute in double precision: also where the networks ask for fp32 because autocast could have given them less."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def published_state(source, model, discriminator=None):
    """A checkpoint in the published names and shapes, filled by `recipe`."""
    constants = FORMATS[source].constants(model)
    state = {}
    for name, shape in published_shapes(source, model, discriminator).items():
        if name in constants:
            state[name] = constants[name].clone()
        elif name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(0)
        else:
            state[name] = recipe(name, shape)
    return state


def filled(config, source, with_discriminator=False):
    """Our networks, filled through the importer: (model, discriminator or None)."""
    model = build_model(config)
    discriminator = build_discriminator(config) if with_discriminator else None
    import_tensors(source, published_state(source, model, discriminator), model, discriminator)
    networks = (model, discriminator) if with_discriminator else (model,)
    for network in networks:
        network.to(torch.get_default_dtype()).eval()
    return model, discriminator


def images(seeds):
    """The fixtures' inputs: smooth noise (B, 3, 256, 256) in [0, 1] from seeds."""
    low = [np.random.default_rng(int(seed)).uniform(0, 1, (1, 3, 16, 16)).astype(np.float32) for seed in seeds]
    return torch.nn.functional.interpolate(from_fixture(np.concatenate(low)), size=256, mode='bilinear',
                                           align_corners=False)


# ---------------------------------------------------------------------------- forward passes

FLOW = (8e-5, 1e-5)            # ten times the fp32 rounding of the released code
FEATURE = (7e-3, 3e-4)
IMAGE = (7e-3, 3e-4)
UNIT = (7e-4, 3e-5)           # images in [0, 1], features of order 1; the paper's are ten times as large
FLIPS = 8                      # of 1024 quantisation indices: near-ties may go either way


def numpy(tensor):
    return tensor.detach().cpu().numpy()


def shared_motion(fixture, source, driving, dense):
    """What all FOMM descendants store: keypoints of both images, coarse flow, occlusion, mask."""
    for name, keypoints in (('source', source), ('driving', driving)):
        for part in ('value', 'jacobian'):
            key = f'kp_{name}_{part}'
            yield Comparison(key, numpy(getattr(keypoints, part)), fixture[key], *FLOW)
    yield Comparison('deformation', numpy(dense.flow), fixture['deformation'], *FLOW)
    yield Comparison('occlusion_map', numpy(dense.occlusion_logit.sigmoid()), fixture['occlusion_map'], *FLOW)
    if 'mask_s4' in fixture:
        yield Comparison('mask_s4', numpy(dense.mask[:, :, ::4, ::4]), fixture['mask_s4'], *FLOW)


def generate(fixture, config, source_format):
    """What our model, filled, makes of the fixture's images in eval mode."""
    model, _ = filled(config, source_format)
    with torch.no_grad():
        return model(*(from_unit(from_fixture(fixture[name])) for name in ('source', 'driving')))


def fomm_forward(fixture, config):
    """Every stored result of FOMM in eval mode."""
    ours = generate(fixture, config, 'fomm')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def mcnet_forward(fixture, config):
    """Every stored result of MCNet in eval mode: also what its memory was asked and what it holds."""
    ours = generate(fixture, config, 'mcnet')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    for name, tensors in (('feat', ours.features), ('value', ours.values)):
        for i, tensor in enumerate(tensors):
            theirs = fixture[f'{name}_list_{i}_sub']
            step = tensor.shape[-1] // theirs.shape[-1]
            yield Comparison(f'{name}_list_{i}_sub', numpy(tensor[:, ::32, ::step, ::step]), theirs, *UNIT)
    yield Comparison('deformed_s4', numpy(ours.warped_source[:, :, ::4, ::4]), fixture['deformed_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def smac_forward(fixture, config):
    """Every intermediate result of the paper's model in eval mode."""
    ours = generate(fixture, config, 'smac')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    yield Comparison('driving_kp_heatmap_s4', numpy(ours.dense_motion.driving_heatmaps[:, :, ::4, ::4]),
                     fixture['driving_kp_heatmap_s4'], *FLOW)

    lists = {'deformation_list': ours.flows, 'res_deform_list': ours.residuals, 'out_occ': ours.occlusions[1:]}
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            yield Comparison(f'{name}_{i}', numpy(tensor), fixture[f'{name}_{i}'], *FLOW)
    for i, tensor in enumerate(ours.reconstructions):
        # A flipped index changes the pixels around its token; the mean says whether more than that differs.
        offset = tensor - identity_grid(tensor.shape[1:3], tensor)
        yield Comparison(f'motion_recon_list_{i}', numpy(offset), fixture[f'motion_recon_list_{i}'], 1.0, 1e-4)
    for name, codes in (('motion', ours.motion_quantized), ('app', ours.appearance_quantized)):
        theirs = fixture[f'codebook_loss_{name}_list']
        yield Comparison(f'codebook_loss_{name}_list', numpy(torch.stack([scale.loss for scale in codes])), theirs,
                         1e-4 * theirs.max(), 1e-4 * theirs.max())
        for i, scale in enumerate(codes):
            flips = numpy(scale.indices).ravel() != fixture[f'vq_index_{name}_{i}']
            yield Comparison(f'vq_index_{name}_{i} flips', np.array([flips.sum()]), np.zeros(1), FLIPS, FLIPS)

    for name, tensors in (('before', ours.warped), ('after', ours.compensated)):
        for i, tensor in enumerate(tensors):
            step = tensor.shape[-1] // 16
            key = f'app_{name}_{i}_sub'
            if key in fixture:
                yield Comparison(key, numpy(tensor[:, ::16, ::step, ::step]), fixture[key], *FEATURE)
    yield Comparison('lq_feat_c8', numpy(ours.compensated[0][:, ::8]), fixture['lq_feat_c8'], *FEATURE)
    yield Comparison('out', numpy(ours.prediction), fixture['out'], *IMAGE)
    first_scale, theirs = numpy(ours.first_scale_prediction), fixture['out_lr_0']
    stride = first_scale.shape[-1] // theirs.shape[-1]
    yield Comparison('out_lr_0', first_scale[:, :, ::stride, ::stride], theirs, *IMAGE)


# ---------------------------------------------------------------------------- this paper, one training step

def relative(name, ours, theirs, tolerance=1e-3, floor=1e-6):
    ours, theirs = float(ours), float(theirs)
    limit = tolerance * max(abs(theirs), floor / tolerance)
    return Comparison(name, np.array([ours]), np.array([theirs]), limit, limit)


def smac_step(fixture, config):
    """Losses, last-layer gradients and every parameter's gradient norm of one full generator step."""
    training = any(name.startswith('post/') for name in fixture)
    model, discriminator = filled(config, 'smac', with_discriminator=True)
    vgg = {name: recipe(f'vgg19/{name}', value.shape) for name, value in VGG19().state_dict().items()}
    objective = build_objective(config, model, vgg).to(torch.get_default_dtype())
    discriminator_objective = DiscriminatorObjective(discriminator, config.train_params.objective_params)
    objective.train(training), discriminator_objective.train(training)
    source, driving = (2 * images(fixture[f'seeds_{name}']) - 1 for name in ('source', 'driving'))
    transform = RandomTransform(*(from_fixture(fixture[name]) for name in ('theta', 'control_params')))

    discriminator.requires_grad_(False)
    step = objective(source, driving, transform, discriminator)
    step.total.backward()
    discriminator.requires_grad_(True)
    total, real_fake = discriminator_objective(driving, step.generated)
    total.backward()

    yield from shared_motion(fixture, step.generated.source_keypoints, step.generated.driving_keypoints,
                             step.generated.dense_motion)
    losses = {name: float(value) for name, value in step.losses.items()}
    weights = config.train_params.objective_params.loss_weights
    scalars = {'log/l_g_pix': losses['l1'], 'perceptual_raw': losses['perceptual'],
               'perceptual_lr_raw_unweighted': losses['first_scale_perceptual'],
               'log/l_g_pix_lr_0': weights['first_scale'] * losses['first_scale_l1'],
               'log/l_g_percep_lr_0': weights['first_scale'] * losses['first_scale_perceptual'],
               'gan_g_raw': losses['adversarial'],
               'log/d_weight': weights['adversarial'] * losses['adaptive_weight'],
               'log/l_g_motion_codebook_code': losses['motion_code'],
               'log/l_g_motion_codebook_recon': weights['motion_reconstruction'] * losses['motion_reconstruction'],
               'log/l_g_app_codebook_code': losses['appearance_code'],
               'log/l_equivariance_value': losses['equivariance_value'],
               'log/l_equivariance_jacobian': losses['equivariance_jacobian'],
               'log/l_kpd': losses['keypoint_distance'],
               'l_g_total': float(step.total.detach()),
               'recon_grad_norm': step.gradient_norms[0], 'gan_grad_norm': step.gradient_norms[1],
               'gan_d_real_raw': real_fake['discriminator_real'], 'gan_d_fake_raw': real_fake['discriminator_fake']}
    for name, value in scalars.items():
        yield relative(name, value, fixture[name])
    for name, terms in zip(('perceptual_terms_scale_layer', 'perceptual_lr_terms_scale_layer'), step.perceptual_terms):
        theirs = fixture[name]
        yield Comparison(name, numpy(terms), theirs, 1e-3 * theirs.max(), 1e-3 * theirs.max())
    yield Comparison('out_s4', numpy(step.generated.prediction[:, :, ::4, ::4]), fixture['out_s4'], *IMAGE)

    yield from gradient_norms(fixture, model, discriminator)
    if training:
        yield from batch_norm_statistics(fixture, model, discriminator)


GRADIENT_LIMIT = 2e-2      # relative, for the gradient norm of any one parameter


def gradient_norms(fixture, model, discriminator):
    """Norm of every published parameter's gradient: parts that we keep apart are put together again."""
    squares = {}
    for prefix, network in (('model', model), ('discriminator', discriminator)):
        for name, parameter in network.named_parameters():
            origin = smac_origin(model, f'{prefix}.{name}').name
            squares[origin] = squares.get(origin, 0.0) + float(parameter.grad.double().square().sum())
    theirs = dict(zip(map(str, fixture['grad_norm_names']), fixture['grad_norms'].tolist()))
    largest = {}
    for name, value in theirs.items():
        network = name.split('/')[0]
        largest[network] = max(largest.get(network, 0.0), value)
    errors = []
    for name, value in theirs.items():
        # A gradient that is zero but for rounding (a bias before batch norm) has no relative error.
        ours = squares.get(name, float('nan')) ** 0.5
        floor = 2e-7 * largest[name.split('/')[0]]
        errors.append(abs(ours - value) / max(value, 1000 * floor))
        yield relative(f'grad {name}', ours, value, GRADIENT_LIMIT, floor)
    # fp32 rounding is amplified on the way down: the fixtures themselves differ from the same step in float64 by more
    # than 1e-3 in 25 (eval) and 188 (train) of 576 parameters, by 0.14 at worst. So single parameters get
    # GRADIENT_LIMIT, and 1e-3 is asked of the bulk.
    bulk = np.quantile(errors, 0.85)
    beyond = sum(error > 1e-3 for error in errors)
    yield Comparison(f'85 % of all gradient norms, relative ({beyond} of {len(errors)} beyond 1e-3)',
                     np.array([bulk]), np.zeros(1), 1e-3, 1e-3)


def batch_norm_statistics(fixture, model, discriminator):
    """Mean of every running statistic after the step."""
    for prefix, network in (('model', model), ('discriminator', discriminator)):
        for name, buffer in network.named_buffers():
            if 'running' in name:
                key = f"post/{smac_origin(model, f'{prefix}.{name}').name}/mean"
                yield relative(key, buffer.double().mean(), fixture[key], floor=1e-6)


# ---------------------------------------------------------------------------- command line

class Kind(NamedTuple):
    """Fixtures of one kind hold all keys of `has` and none of `lacks`."""
    method: str
    comparisons: Callable
    has: set[str]
    lacks: set[str] = frozenset()


KINDS = [
    Kind('synergy', smac_forward, {'vq_index_motion_0'}),
    Kind('synergy', smac_step, {'perceptual_raw'}),
    Kind('mcnet', mcnet_forward, {'feat_list_0_sub'}),
    Kind('fomm', fomm_forward, {'prediction', 'deformation', 'mask_s4'}, {'feat_list_0_sub', 'warp_img_s4'}),
]


def compare(path, config):
    """All comparisons of a fixture file; UserError if it is no fixture or of another method."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            fixture = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise UserError(f'fixture {path} cannot be read: {error}') from None
    for kind in KINDS:
        if kind.has <= fixture.keys() and not kind.lacks & fixture.keys():
            if kind.method != config.method:
                raise UserError(f'fixture {path} is of method {kind.method}, the config of {config.method}: '
                                f'give another --config')
            # The fixtures' sums were split over two threads. Batch norm over a batch of two, at the bottom of an
            # hourglass, makes the order of summation show: on one thread the training step drifts by thirty times more.
            threads = torch.get_num_threads()
            torch.set_num_threads(2)
            try:
                return list(kind.comparisons(fixture, config))
            finally:
                torch.set_num_threads(threads)
    raise UserError(f'fixture {path} is of no known kind; methods: {", ".join(METHODS)}')


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('fixture', type=Path)
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--float64', action='store_true', help="double precision: shows the fixture's own rounding")
    parser.add_argument('--failures', action='store_true', help='print only what is out of tolerance')
    options = parser.parse_args(arguments)
    try:
        with float64() if options.float64 else nullcontext():
            comparisons = compare(options.fixture, schema.load(options.config, options.set))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2

    width = max(len(comparison.name) for comparison in comparisons)
    print(f'{"":{width}}  {"largest":>9} {"allowed":>9}  {"mean":>9} {"allowed":>9}')
    failures = 0
    for comparison in comparisons:
        largest, mean, passed = comparison.verdict()
        failures += not passed
        if not (passed and options.failures):
            print(f'{comparison.name:{width}}  {largest:9.2e} {comparison.largest:9.2e}  '
                  f'{mean:9.2e} {comparison.mean:9.2e}  {"ok" if passed else "OUT"}')
    print(f'{len(comparisons) - failures} of {len(comparisons)} within tolerance')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
