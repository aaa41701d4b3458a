"""Export: every method as ONNX, against PyTorch, on another source, other drivers and another batch size."""

import importlib.util

import numpy as np
import pytest
import torch

from datasets.still import FrameList
from inference import DrivenSource, Renderer
from logger import write_checkpoint
from modules.build import build_model
from modules.talking_head import Keypoints
from motion.settings import Motion
from tests.support.command_line import refused, succeeds
from tests.support.small import small_config, small_model
from tests.support.tiny import ROOT, tiny
from tools.onnx import export
from visualizer import to_tensor

SYNERGY = ('model_params.autoencoder_params={channels: [16, 8], res_blocks: 1, norm_groups: 4}',
           'model_params.dense_motion_params.scale_factor=0.5', 'model_params.motion_codebook_params.num_scales=2',
           'model_params.appearance_codebook_params.num_scales=2', 'model_params.motion_codebook_params.num_layers=1')
BOX = ('model_params.image_skip=true', 'model_params.kp_detector_params.rigid_keypoints=4',
       'model_params.dense_motion_params.anchor_width=0.1')          # what the model in weights/ has beside the paper's
METHODS = ('synergy', 'box', 'fomm', 'mcnet', 'mrfa', 'dagan')


def model_of(method):
    """(a small model whose keypoints and Jacobians differ from image to image, its config)."""
    if method not in ('synergy', 'box'):
        return small_model(method), small_config(method)
    torch.manual_seed(0)
    config = tiny(*SYNERGY, *(BOX if method == 'box' else ()))
    model = build_model(config).eval()
    if method == 'synergy':
        torch.nn.init.normal_(model.keypoint_detector.jacobian.weight, std=0.02)
    model.keypoint_detector.kp.weight.data.mul_(3 if method == 'synergy' else 6)
    return model, config


def needs_packages():
    """onnx; skips the test where it, or its runtime, is not installed."""
    pytest.importorskip('onnxruntime')
    return pytest.importorskip('onnx')


@pytest.fixture(scope='module', params=METHODS)
def exported(request, tmp_path_factory):
    """(folder of the graphs, the model, its config, numbers)."""
    needs_packages()
    model, config = model_of(request.param)
    folder = tmp_path_factory.mktemp('export') / request.param
    return folder, model, config, export.export(model, config, folder)


def animation_script(folder):
    """The script that was exported with the graphs, as a module."""
    spec = importlib.util.spec_from_file_location('animate_onnx', folder / 'animate_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(count, seed, size):
    """Smooth random frames (H, W, 3) uint8."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode='bicubic').clamp(0, 1) * 255
    return list(fine.permute(0, 2, 3, 1).byte().numpy())


@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_a_graph_that_is_traced_with_two_frames_takes_three(method):
    """Needs neither of the packages: a length that was taken for a number would go unnoticed where they are missing."""
    model, config = model_of(method)
    side = config.model_params.image_size
    source = model.encode_source(torch.rand(1, 3, side, side))
    two, three = (model.keypoints(torch.rand(count, 3, side, side)) for count in (2, 3))

    def render(value, jacobian):
        return {'prediction': model.render(source, Keypoints(value, jacobian)).prediction}
    graph = export.trace(model, render, (two.value, two.jacobian))
    [found], wanted = graph(three.value, three.jacobian), model.render(source, three).prediction
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_another_source_driver_and_batch_size_give_what_pytorch_gives(exported):
    folder, model, config, numbers = exported
    side = config.model_params.image_size
    assert max(numbers['max_difference'].values()) <= export.TOLERANCE
    head = animation_script(folder).OnnxHead(folder, threads=1)
    for source, drivers in ((11, 5), (12, 1)):
        source, driving = to_tensor(images(1, source, side)), to_tensor(images(drivers, source + 20, side))
        found, flow = head.render(head.encode_source(source.numpy()), head.keypoints(driving.numpy()))
        with torch.inference_mode():
            made = model.render(model.encode_source(source), model.keypoints(driving))
        wanted = made.prediction
        np.testing.assert_allclose(flow, made.flows[-1].numpy(), atol=2e-4)
        assert found.shape == (drivers, 3, side, side)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)
    # The comparison would notice: another driver makes another frame.
    assert drivers == 1 or abs(found[0] - found[1]).max() > 1e-2


def test_the_script_transfers_relative_motion_as_pytorch_does(exported):
    folder, model, config, _ = exported
    script, side = animation_script(folder), config.model_params.image_size
    [source], frames, head = images(1, 3, side), images(5, 4, side), script.OnnxHead(folder, threads=1)
    found = list(script.animate(head, source, frames, relative=True, batch_size=2))
    driven = DrivenSource(Renderer(model, 'cpu'), source, initial=frames[0])
    wanted = ((driven(frames)[-1].prediction.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(found) - wanted).max() <= 0.51       # rounding to 8 bits
    [large] = images(1, 3, 96)
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
    iio.imwrite(tmp_path / 'source.png', images(1, 5, 96)[0])
    titled(tmp_path / 'driving.mp4', b'caf\xe9 noir')
    animation_script(moved).main([str(tmp_path / name) for name in ('source.png', 'driving.mp4', 'result.mp4')]
                                 + ['--models', str(moved), '--threads', '1', '--size', '96'])
    moved.rename(folder)
    result = open_clip(tmp_path / 'result.mp4')
    assert len(result) == 3 and result.fps == 25 and result.read([0])[0].shape == (96, 96, 3)


def test_the_command_line_and_graphs_that_differ_from_pytorch(tmp_path, capsys, monkeypatch):
    needs_packages()
    model, config = model_of('fomm')
    state = model.state_dict()
    write_checkpoint(tmp_path / 'model.pt', {'config': config.as_dict(), 'step': 3, 'model': state, 'ema': state})
    command = '--mode', 'export', '--checkpoint', tmp_path / 'model.pt', '--out'
    for _ in range(2):                                           # an export may be replaced
        assert 'keypoints.onnx' in succeeds(capsys, *command, tmp_path / 'onnx')
    (tmp_path / 'mine').mkdir()
    assert 'is no export' in refused(capsys, *command, tmp_path / 'mine')
    monkeypatch.setattr(export, 'TOLERANCE', 0.0)
    assert 'other numbers than PyTorch' in refused(capsys, *command, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('result', ['driving.mp4', 'link.mp4'])
def test_the_program_replaces_no_input(tmp_path, capsys, result):
    """The user's video was lost."""
    pytest.importorskip('onnxruntime')
    for name in ('source.png', 'driving.mp4'):
        (tmp_path / name).write_text(name)
    (tmp_path / 'link.mp4').hardlink_to(tmp_path / 'driving.mp4')
    with pytest.raises(SystemExit):
        animation_script(ROOT / 'tools' / 'onnx').main([str(tmp_path / name)
                                                        for name in ('source.png', 'driving.mp4', result)])
    assert 'would replace an input' in capsys.readouterr().err
    assert (tmp_path / 'driving.mp4').read_text() == 'driving.mp4'
