"""Config -> networks. A new method is one line in METHODS."""

from typing import NamedTuple

from torch import nn

from modules.discriminator import PatchDiscriminator
from modules.objective import Objective
from modules.synergy import Synergy
from modules.talking_head import TalkingHead


class Method(NamedTuple):
    """The classes of one method; each has a `Params` dataclass, the discriminator's is `discriminator_params`."""
    model: type[TalkingHead]
    discriminator: type[nn.Module]


METHODS = {
    'synergy': Method(Synergy, PatchDiscriminator),
}


def build_model(config):
    """The TalkingHead that the config describes, freshly initialised."""
    return METHODS[config.method].model(config.model_params)


def build_discriminator(config):
    """The discriminator that the config describes, freshly initialised."""
    return METHODS[config.method].discriminator(config.model_params.discriminator_params)


def build_objective(config, model, vgg_state=None):
    """Losses around `model`; `vgg_state` as in Objective."""
    return Objective(model, config.train_params.objective_params, vgg_state)
