"""What training shows of itself: scores and a picture on fixed pairs of unseen clips."""

import logging

import numpy as np
import torch

from datasets.build import validation_clips
from metrics.image import l1, psnr, ssim
from visualizer import to_tensor, to_uint8, training_sheet

log = logging.getLogger(__name__)


class Validation:
    """Scores and a picture on fixed test pairs: first frame of a clip -> some later frame of it."""

    BATCH = 8

    def __init__(self, config, run, device):
        params = config.train_params
        self.run, self.device = run, device
        self.rows = config.visualizer_params.samples
        rng = np.random.default_rng((params.seed, 3))
        clips = validation_clips(config.dataset_params, config.model_params.image_size)
        pairs = [clips[i % len(clips)] for i in range(params.val_pairs)]
        frames = [clip.read([0, int(rng.integers(len(clip)))]) for clip in pairs]
        self.sources, self.drivings = map(list, zip(*frames))
        self.copying = self._scores(self.sources)

    @torch.inference_mode()
    def __call__(self, model, step):
        """Score the model (in eval mode) and draw its first rows."""
        predictions = []
        for start in range(0, len(self.sources), self.BATCH):
            source, driving = (to_tensor(frames[start:start + self.BATCH], self.device)
                               for frames in (self.sources, self.drivings))
            state = model.encode_source(source)
            predictions.extend(to_uint8(model.render(state, model.keypoints(driving)).prediction))
        scores = self._scores(predictions)
        self.run.scalars(step, {f'validation/{name}': value for name, value in scores.items()}
                         | {f'copying_source/{name}': value for name, value in self.copying.items()})

        source, driving = (to_tensor(frames[:self.rows], self.device) for frames in (self.sources, self.drivings))
        generated = model(source, driving)
        self.run.picture(step, training_sheet(source, driving, generated,
                                              generated.source_keypoints, generated.driving_keypoints))
        log.info('step %d, unseen pairs: %s', step, ', '.join(
            f'{name} {value:.4g} (copying the source {self.copying[name]:.4g})' for name, value in scores.items()))

    def _scores(self, predictions):
        """Mean scores of 8-bit predictions against the driving frames."""
        predicted, wanted = ((to_tensor(frames) + 1) / 2 for frames in (predictions, self.drivings))
        return {'psnr': float(psnr(predicted, wanted).clamp(max=100).mean()),
                'l1': float(l1(predicted, wanted).mean()), 'ssim': float(ssim(predicted, wanted).mean())}
