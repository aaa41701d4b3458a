"""Networks of a config; METHODS lists the methods, one line each."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from modules.dagan import Dagan
from modules.discriminator import MultiScaleDiscriminator, PatchDiscriminator
from modules.fomm import Fomm
from modules.mcnet import MCNet
from modules.mrfa import Mrfa
from modules.objective import Objective
from modules.synergy import Synergy
from modules.talking_head import TalkingHead
from support.errors import UserError
from support.hardware import available_memory

GIB = 2 ** 30
COPIES = 2           # of the weights, at least: the network's, and those that are read from a checkpoint or averaged
WIDTHS = 'widths (channels, block_expansion, max_features, *_dim), num_layers or num_codes'     # of model_params


class Method(NamedTuple):
    """What builds the networks of one method from its Params.

    model:         the class; its `Params` are `model_params` of the config
    discriminator: Params -> discriminator, (image, keypoints) -> DiscriminatorOutput
    """
    model: type[TalkingHead]
    discriminator: Callable


def _multi_scale_discriminator(params):
    return MultiScaleDiscriminator(params.discriminator_params, params.kp_detector_params.num_kp)


METHODS = {
    'synergy': Method(Synergy, lambda params: PatchDiscriminator(params.discriminator_params)),
    'fomm': Method(Fomm, _multi_scale_discriminator),
    'mcnet': Method(MCNet, _multi_scale_discriminator),
    'dagan': Method(Dagan, _multi_scale_discriminator),
    'mrfa': Method(Mrfa, _multi_scale_discriminator),
}


def build_model(config):
    """The TalkingHead that the config describes, freshly initialised; UserError if its weights do not fit memory."""
    model = _fitting(lambda: METHODS[config.method].model(config.model_params), f'method {config.method}')
    model.params = config.model_params
    return model


def build_discriminator(config):
    """The discriminator that the config describes, freshly initialised; UserError as of `build_model`."""
    return _fitting(lambda: METHODS[config.method].discriminator(config.model_params), 'its discriminator')


def _fitting(build, what):
    """The network that build() makes; UserError if the free memory does not hold COPIES of its weights.

    Without the check the kernel would end the process. what: name of the network in the message
    """
    free = available_memory()
    if torch.empty(0).is_meta or free is None:
        return build()
    with torch.device('meta'):
        needed = COPIES * sum(parameter.nbytes for parameter in build().parameters())
    if needed > free:
        raise UserError(f'model_params: {what} has {needed / COPIES / GIB:.1f} GiB of weights, of which '
                        f'{COPIES} copies must fit {free / GIB:.1f} GiB of free memory; lower {WIDTHS}')
    return build()


def build_objective(config, model, vgg_state=None):
    """Losses around `model`; `vgg_state` as in Objective."""
    return Objective(model, config.train_params.objective_params, vgg_state)
