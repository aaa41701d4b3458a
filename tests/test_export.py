"""Export: every method as ONNX, against PyTorch, on another source, other drivers and another batch size."""

import importlib.util

import numpy as np
import pytest
import torch

import run
from config import schema
from datasets.still import FrameList
from inference import DrivenSource, Renderer
from logger import write_checkpoint
from modules.build import build_model
from modules.token_pose import TokenKeypointDetector
from modules.talking_head import Keypoints
from motion.settings import Motion
from support.errors import UserError
from tests.support.tiny import ROOT, tiny
from tools.onnx import export
from visualizer import to_tensor

KEYPOINTS = ('model_params.kp_detector_params={num_kp: 4, block_expansion: 8, num_blocks: 2, max_features: 16, '
             'scale_factor: 0.5, padding: 3}')
MOTION = 'model_params.dense_motion_params={block_expansion: 8, num_blocks: 2, max_features: 16, scale_factor: 0.25}'
FIRST_ORDER = ('dataset_params.root_dir=null', 'model_params.image_size=32', 'model_params.block_expansion=8',
               'model_params.max_features=16', KEYPOINTS, MOTION)
SYNERGY = ('model_params.autoencoder_params={channels: [16, 8], res_blocks: 1, norm_groups: 4}',
           'model_params.dense_motion_params.scale_factor=0.5', 'model_params.motion_codebook_params.num_scales=2',
           'model_params.appearance_codebook_params.num_scales=2', 'model_params.motion_codebook_params.num_layers=1')
METHODS = {
    'synergy': lambda: tiny(*SYNERGY),
    'fomm': lambda: first_order('fomm-vox-256.yaml', 'model_params.num_bottleneck_blocks=1'),
    'mcnet': lambda: first_order('mcnet-vox-256.yaml', 'model_params.memory_channels=8', 'model_params.memory_size=4',
                                   'model_params.style_channels=8', 'model_params.style_hidden=8'),
    'mrfa': lambda: first_order('mrfa-vox-256.yaml', 'model_params.num_down_blocks=3',
                                'model_params.flow_update_width=8', 'model_params.structure_params={channels: 8, '
                                'block_expansion: 4, num_blocks: 2, max_features: 8}', 'model_params.token_pose_params='
                                '{width: 4, stem_width: 4, num_modules: 1, patch_size: 2, dim: 16, num_heads: 2, '
                                'num_layers: 2}'),
    'dagan': lambda: first_order('dagan-vox-256.yaml', 'model_params.num_bottleneck_blocks=1',
                                 'model_params.attention_channels=4',
                                 'model_params.depth_params={pretrained: null, block_expansion: 8, num_stages: 2}'),
}


def first_order(name, *overrides):
    return schema.load(ROOT / 'config' / name, [*FIRST_ORDER, *overrides])


def lively(model):
    """Weights under which keypoints and Jacobians differ from image to image, which fresh ones hardly do."""
    torch.manual_seed(1)
    detector = model.keypoint_detector
    if isinstance(detector, TokenKeypointDetector):
        torch.nn.init.normal_(detector.tokens)
        torch.nn.init.normal_(detector.value_head[1].weight, std=0.3)
        torch.nn.init.normal_(detector.jacobian_head[1].weight, std=0.02)
    else:
        torch.nn.init.normal_(detector.jacobian.weight, std=0.02)
        detector.kp.weight.data.mul_(3)
    return model.eval()


def needs_packages():
    """onnx; skips the test where it, or its runtime, is not installed."""
    pytest.importorskip('onnxruntime')
    return pytest.importorskip('onnx')


@pytest.fixture(scope='module', params=METHODS)
def exported(request, tmp_path_factory):
    """(folder of the graphs, the model, its config, figures)."""
    needs_packages()
    torch.manual_seed(0)
    config = METHODS[request.param]()
    model = lively(build_model(config))
    folder = tmp_path_factory.mktemp('export') / request.param
    return folder, model, config, export.export(model, config, folder)


def animation_script(folder):
    """The script that was exported with the graphs, as a module."""
    spec = importlib.util.spec_from_file_location('animate_onnx', folder / 'animate_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(count, seed, size=32):
    """Smooth random frames (H, W, 3) uint8."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode='bicubic').clamp(0, 1) * 255
    return list(fine.permute(0, 2, 3, 1).byte().numpy())


@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_a_graph_that_is_traced_with_two_frames_takes_three(method):
    """Needs neither of the packages: a length that was taken for a number would go unnoticed where they are missing."""
    torch.manual_seed(0)
    model = lively(build_model(METHODS[method]()))
    source = model.encode_source(torch.rand(1, 3, 32, 32))
    two, three = (model.keypoints(torch.rand(count, 3, 32, 32)) for count in (2, 3))

    def render(value, jacobian):
        return {'prediction': model.render(source, Keypoints(value, jacobian)).prediction}
    graph = export.trace(model, render, (two.value, two.jacobian))
    [found], wanted = graph(three.value, three.jacobian), model.render(source, three).prediction
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_another_source_driver_and_batch_size_give_what_pytorch_gives(exported):
    folder, model, _, figures = exported
    assert max(figures['max_difference'].values()) <= export.TOLERANCE
    head = animation_script(folder).OnnxHead(folder, threads=1)
    for source, drivers in ((11, 5), (12, 1)):
        source, driving = to_tensor(images(1, source)), to_tensor(images(drivers, source + 20))
        found, flow = head.render(head.encode_source(source.numpy()), head.keypoints(driving.numpy()))
        with torch.inference_mode():
            made = model.render(model.encode_source(source), model.keypoints(driving))
        wanted = made.prediction
        np.testing.assert_allclose(flow, made.flows[-1].numpy(), atol=2e-4)
        assert found.shape == (drivers, 3, 32, 32)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)
    # The comparison would notice: another driver makes another frame.
    assert drivers == 1 or abs(found[0] - found[1]).max() > 1e-2


def test_the_script_transfers_relative_motion_as_pytorch_does(exported):
    folder, model, _, _ = exported
    script = animation_script(folder)
    [source], frames, head = images(1, 3), images(5, 4), script.OnnxHead(folder, threads=1)
    found = list(script.animate(head, source, frames, relative=True, batch_size=2))
    driven = DrivenSource(Renderer(model, 'cpu'), source, initial=frames[0])
    wanted = ((driven(frames)[-1].prediction.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(found) - wanted).max() <= 0.51       # rounding to 8 bits
    [large] = images(1, 3, size=96)
    found = list(script.animate(head, source, frames, batch_size=2, large=large))
    detailed = Renderer(model, 'cpu').follow(large, FrameList(frames, 'driver'), Motion(), detail=True)
    wanted = np.concatenate([batch.frames for batch in detailed.render(frames)]).astype(int)
    # The source is reduced from the large one here: another filter.
    assert np.abs(np.stack(found) - wanted).mean() < 3


def test_weights_are_stored_once_and_graphs_are_valid(exported):
    folder, model, _, _ = exported
    onnx = needs_packages()
    for name in export.GRAPHS:
        onnx.checker.check_model(folder / f'{name}.onnx')
        [opset] = onnx.load(folder / f'{name}.onnx', load_external_data=False).opset_import
        assert 16 <= opset.version <= 18
    inference = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    assert (folder / 'weights.bin').stat().st_size <= 1.1 * inference
    assert sorted(path.name for path in folder.iterdir()) == [
        'animate_onnx.py', 'export.json', 'keypoints.onnx', 'render.onnx', 'source.onnx', 'weights.bin']


def test_the_folder_can_be_moved_and_animates_from_the_command_line(exported, tmp_path):
    folder, *_ = exported
    if folder.name != 'fomm':
        pytest.skip('once is enough')
    import imageio.v3 as iio

    from datasets.video import open_clip
    from tests.support.video_files import titled
    moved = folder.rename(tmp_path / 'moved model')
    iio.imwrite(tmp_path / 'source.png', images(1, 5, size=48)[0])
    titled(tmp_path / 'driving.mp4', b'caf\xe9 noir')
    animation_script(moved).main([str(tmp_path / name) for name in ('source.png', 'driving.mp4', 'result.mp4')]
                                 + ['--models', str(moved), '--threads', '1', '--size', '48'])
    moved.rename(folder)
    result = open_clip(tmp_path / 'result.mp4')
    assert len(result) == 3 and result.fps == 25 and result.read([0])[0].shape == (48, 48, 3)


def test_graphs_that_differ_from_pytorch_do_not_appear(exported, tmp_path, monkeypatch):
    _, model, config, _ = exported
    if config.method != 'fomm':
        pytest.skip('once is enough')
    monkeypatch.setattr(export, 'TOLERANCE', 0.0)
    with pytest.raises(UserError, match='other numbers than PyTorch'):
        export.export(model, config, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path, capsys):
    needs_packages()
    config = METHODS['fomm']()
    state = build_model(config).state_dict()
    write_checkpoint(tmp_path / 'model.pt', {'config': config.as_dict(), 'step': 3, 'model': state, 'ema': state})
    arguments = ['--mode', 'export', '--checkpoint', tmp_path / 'model.pt',
                 '--out', tmp_path / 'onnx']
    assert run.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    assert 'keypoints.onnx' in capsys.readouterr().out
    assert run.main([str(argument) for argument in arguments]) == 0      # an export may be replaced

    (tmp_path / 'mine').mkdir()
    assert run.main([*map(str, arguments[:-1]), str(tmp_path / 'mine')]) == 2
    assert 'is no export' in capsys.readouterr().err
