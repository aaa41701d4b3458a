"""Rules for the scalars of a run, each with the likely reason for violating it.

Training checks every log interval against this table (curves/alarms.py); `--mode curves` checks a complete run and its
reference (curves/compare.py).
"""

from fnmatch import fnmatchcase
from typing import NamedTuple

BELOW, ABOVE, EITHER = 'below', 'above', 'either'


class Rule(NamedTuple):
    """A rule for scalars.

    name:      the anomaly in few words; it identifies an alarm
    scalars:   pattern of their names, such as 'perplexity/*'
    side:      the forbidden side of the limit and of a reference's band: BELOW, ABOVE or EITHER
    reason:    likely reason, and what to do
    limit:     value that no healthy run of any recipe crosses; None: compare with a reference only
    steps:     least number of consecutive steps
    together:  the rule is broken only if all matching scalars cross the limit
    """
    name: str
    scalars: str
    side: str
    reason: str
    limit: float | None = None
    steps: int = 0
    together: bool = False

    def matches(self, scalar):
        return fnmatchcase(scalar, self.scalars)

    def crossing(self, values):
        """Names of the scalars in {name: value} that cross the limit; [] if `together` and not all of them do."""
        matching = [name for name in values if self.matches(name)]
        over = [name for name in matching if self.crossed(values[name])]
        return [] if self.together and over != matching else over

    def crossed(self, value):
        """Whether one value crosses the limit; NaN does not."""
        return self.limit is not None and (value < self.limit if self.side == BELOW else value > self.limit)


# The limits leave room: keypoints spread by 0.2 to 0.5 from the first step on, in units of [-1, 1] (64 and 256 px), and
# flows of 32 x 32 move by 0.2 to 0.7 px on average. The first of several rules that match gives the reason.
RULES = (
    Rule('keypoints collapsed', 'diagnostics/keypoint_spread', BELOW,
         'keypoints collapsed onto one point and carry no motion; raise the weight of keypoint_distance with '
         'keypoint_distance_hinge=true, or lower the learning rate', limit=0.05, steps=200),
    Rule('keypoints flew apart', 'diagnostics/keypoint_spread', ABOVE,
         'keypoints sit at the borders of the image; lower the learning rate', limit=0.95, steps=200),
    Rule('flow stands still', 'diagnostics/flow_magnitude_px', BELOW,
         'the flow is 0 and the source is copied; check that driving frames differ from their '
         'sources, or start with train_params.motion_iterations', limit=0.03, steps=500),
    Rule('flow tears', 'diagnostics/flow_magnitude_px', ABOVE,
         'the flow moves more than in the reference: it tears, or these clips move more'),
    Rule('codes died', 'perplexity/*', BELOW,
         'codes died: features share a few; set revive_after, and feature_start and whitened for appearance',
         limit=1.5, steps=300),
    Rule('codes died', 'codes_used/*', BELOW,
         'codes died: few are chosen at all; set revive_after, and feature_start and whitened for appearance'),
    Rule('discriminator won', 'discriminator_*', BELOW,
         'the discriminator won, and its gradient vanishes; lower discriminator_learning_rate or the '
         'weight of adversarial', limit=0.02, steps=200, together=True),
    Rule('discriminator won', 'adversarial', ABOVE,
         'the discriminator separates real and generated images too easily; lower discriminator_learning_rate'),
    Rule('training waits for data', 'data/wait_share', ABOVE,
         'most of the time goes by waiting for data; raise train_params.num_workers, or read frame folders, or mp4 '
         'with a key frame every ten frames', limit=0.5, steps=100),
    Rule('clips were skipped', 'data/skipped_clips', ABOVE, 'clips cannot be read; run.log names them'),
    Rule('steps were not finite', 'diagnostics/skipped_steps', ABOVE,
         'steps were not finite and were skipped; lower the learning rate, or set train_params.precision=fp32',
         limit=0),
    Rule('gradients grew', 'diagnostics/gradient_norm', ABOVE,
         'gradients are larger than in the reference; check learning rate and clip_norm'),
    Rule('another learning rate', 'learning_rate', EITHER,
         'the learning rate is another one; what else differs may follow from it'),
    Rule('other clips', 'copying_source/*', EITHER,
         'the validation clips are others, so scores do not compare'),
)
MACHINE = ('data/wait_s', 'data/step_s', 'data/wait_share')      # depend on the machine: limits only
UNKNOWN = 'no known reason; of several lines, the first to leave its band is the likeliest cause'


def reason_of(scalar, side):
    """The likely reason for a scalar on one side, BELOW or ABOVE, of a reference's band."""
    return next((rule.reason for rule in RULES if rule.matches(scalar) and rule.side in (side, EITHER)), UNKNOWN)
