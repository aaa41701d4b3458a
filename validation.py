"""Validation during training: scores and a picture of fixed pairs of unseen clips."""

import logging
import math

import numpy as np
import torch

from datasets.build import validation_clips
from metrics.expression import face_scores
from metrics.image import l1, psnr, ssim
from visualizer import to_tensor, to_uint8, training_sheet

log = logging.getLogger(__name__)


class Validation:
    """Scores and a picture on fixed pairs: the first frame of a clip as source, a random frame as driving image.

    Frames are rendered at the precision that trains, animate_params.batch_size at once.
    """

    def __init__(self, config, run, device):
        params = config.train_params
        self.run, self.device = run, device
        self.rows, self.batch_size = config.visualizer_params.samples, config.animate_params.batch_size
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=params.precision == 'bf16')
        rng = np.random.default_rng((params.seed, 3))
        clips = validation_clips(config.dataset_params, config.model_params.image_size)
        pairs = [clips[i % len(clips)] for i in range(params.val_pairs)]
        frames = [clip.read([0, int(rng.integers(len(clip)))]) for clip in pairs]
        self.sources, self.drivings = map(list, zip(*frames))
        self.wanted = (to_tensor(self.drivings) + 1) / 2
        self.copying = _means(self._scores(self.sources))

    @torch.inference_mode()
    def __call__(self, model, step):
        """Score the model, which is in eval mode, and draw the first pairs."""
        predictions = []
        for start in range(0, len(self.sources), self.batch_size):
            source, driving = (to_tensor(frames[start:start + self.batch_size], self.device)
                               for frames in (self.sources, self.drivings))
            with self.autocast:
                generated = model.render(model.encode_source(source), model.keypoints(driving))
            predictions.extend(to_uint8(generated.prediction))
        of_pairs = self._scores(predictions)
        scores = _means(of_pairs)
        self.run.scalars(step, {f'validation/{name}': value for name, value in scores.items()}
                         | {f'copying_source/{name}': value for name, value in self.copying.items()})

        source, driving = (to_tensor(frames[:self.rows], self.device) for frames in (self.sources, self.drivings))
        with self.autocast:
            generated = model(source, driving)
        self.run.picture(step, training_sheet(source, driving, generated,
                                              generated.source_keypoints, generated.driving_keypoints,
                                              _captions(of_pairs, len(source))))
        log.info('step %d, unseen pairs: %s', step, ', '.join(
            f'{name} {value:.4g} (copying the source {self.copying.get(name, math.nan):.4g})'
            for name, value in scores.items()))

    def _scores(self, predictions):
        """{name: (P,)} of 8-bit predictions against the driving frames of P pairs."""
        predicted = (to_tensor(predictions) + 1) / 2
        return {'psnr': psnr(predicted, self.wanted).clamp(max=100), 'l1': l1(predicted, self.wanted),
                'ssim': ssim(predicted, self.wanted)} | face_scores(predicted, self.wanted)


def _means(scores):
    """{name: mean over the pairs with a value}, without names of no value."""
    finite = {name: values[values.isfinite()] for name, values in scores.items()}
    return {name: float(values.mean()) for name, values in finite.items() if len(values)}


def _captions(scores, count):
    """The scores of the first `count` pairs as texts."""
    return [', '.join(f'{name} {float(values[i]):.3g}' for name, values in scores.items() if values[i].isfinite())
            for i in range(count)]
