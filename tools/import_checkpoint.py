"""Import of published checkpoint files as one checkpoint of this project."""

from pathlib import Path

from logger import write_checkpoint
from modules.build import build_discriminator, build_model
from modules.published.formats import FORMATS, ImportFault, flatten_checkpoint, has_discriminator, import_tensors
from support.errors import UserError
from support.files import make_folder, refuse_overwriting
from support.weights import is_safetensors, load_safetensors, load_tensors


def import_published(source, files, config, out):
    """Import the files of the released code `source` as the checkpoint `out`.

    Inference uses the EMA weights where the files have them. The discriminator is included if its file is given.
    Returns the number of published tensors. Raises UserError naming file and tensor; nothing is written then.
    """
    layout = FORMATS[source]
    if config.method != layout.method:
        raise UserError(f'--from {source} gives a {layout.method} model, the config describes {config.method}: '
                        'give another --config')
    refuse_overwriting([out], files)
    names = ', '.join(map(str, files))
    try:
        loaded = [_read(file) for file in files]
        published = flatten_checkpoint(source, loaded)
        model, ema = build_model(config), build_model(config)
        discriminator = build_discriminator(config) if has_discriminator(source, published) else None
        import_tensors(source, published, model, discriminator)
        import_tensors(source, flatten_checkpoint(source, loaded, ema=True), ema, discriminator)
    except ImportFault as fault:
        raise UserError(f'{names}: {fault}') from None

    state = {'config': config.as_dict(), 'step': 0, 'model': model.state_dict(), 'ema': ema.state_dict()}
    if discriminator is not None:
        state['discriminator'] = discriminator.state_dict()
    make_folder(Path(out).parent)
    write_checkpoint(out, state)
    return len(published)


def _read(file):
    """The content of a published file. A safetensors file names its tensors NETWORK.NAME: one dict per network."""
    if not is_safetensors(file):
        return load_tensors(file)
    networks = {}
    for name, tensor in load_safetensors(file)[0].items():
        network, _, name = name.partition('.')
        networks.setdefault(network, {})[name] = tensor
    return networks
