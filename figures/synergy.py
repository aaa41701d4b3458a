"""Figures of the paper's model: its Fig. 7, 8, 10 and 11, the chosen codes, the codes that one position reads."""

from contextlib import ExitStack

import torch

from figures.codes import chosen_codes, motion_code_flows
from figures.figure import Figure, Panel, Row, calls_of, coarse_figure, pixels, spread_note
from modules.codebook import perplexity

READ_CODES = 5           # codes with the largest attention that are shown


def synergy_figures(model, moment):
    """Figures of Synergy beyond the common ones, for the codebooks that it has."""
    chosen = chosen_codes(model, moment.generated, moment.driving)
    figures = [coarse_figure(moment)]
    if chosen:
        figures += [_codebooks(moment, chosen), _indices(moment, chosen)]
    if model.appearance_scales:
        figures.append(_appearance(moment))
    if moment.at is not None and chosen:
        figures.append(_reads(model, moment))
    return figures


def _codebooks(moment, chosen):
    """Fig. 7 and 8: inputs and outputs of the codebooks."""
    generated, numbers, rows = moment.generated, {}, []
    for i in range(max(found.scale for found in chosen.values()) + 1):
        panels = []
        if f'motion {i + 1}' in chosen:
            flow, decoded = generated.flows[i], generated.reconstructions[i]
            error = pixels(decoded - flow, moment.size)
            numbers[f'motion {i + 1}'] = {'error_px_mean': float(error.mean()), 'error_px_max': float(error.max())}
            panels += [Panel('flow', f'flow M{i}', flow), Panel('flow', f'M{i} from codes', decoded),
                       Panel('heat', 'error', error, spread_note(error, 'px'), unit='px')]
        if f'appearance {i + 1}' in chosen:
            quantized, error = chosen[f'appearance {i + 1}'].quantized, chosen[f'appearance {i + 1}'].distance[:, None]
            share = float(error.square().sum().sqrt() / quantized.encoded.float().norm())
            numbers[f'appearance {i + 1}'] = {'relative_error': share, 'distance_mean': float(error.mean())}
            panels += [Panel('feature', f'driving feature {i + 1}', quantized.encoded, basis=f'scale {i + 1}'),
                       Panel('feature', 'from codes', quantized.vectors, basis=f'scale {i + 1}'),
                       Panel('heat', 'distance', error, f'{100 * share:.1f} % of the feature', unit='of features')]
        rows.append(Row(f'scale {i + 1}', panels))
    return Figure('codebooks', 'Codebooks',
                  'Left: each flow before refinement, and reconstructed from motion codes (Fig. 7). '
                  'Right: encoded driving features, and their nearest appearance codes (Fig. 8).', rows, numbers)


def _indices(moment, chosen):
    """The index of the chosen code at every position, per scale."""
    rows, numbers = [Row('', [Panel('image', 'driving', moment.driving)])], {}
    for i in range(max(found.scale for found in chosen.values()) + 1):
        panels = []
        for book in ('motion', 'appearance'):
            if found := chosen.get(f'{book} {i + 1}'):
                indices = found.quantized.indices
                used = len(indices.unique())
                numbers[f'{book} {i + 1}'] = {'used': used, 'codes': found.count, 'indices': indices[0].tolist()}
                panels.append(Panel('indices', f'{book}, scale {i + 1}', indices + found.first,
                                    f'{used} of {found.count} codes'))
        rows[0].panels.extend(panels) if not i else rows.append(Row('', [None, *panels]))
    return Figure('indices', 'Chosen codes', 'The index of the nearest code at every place, one colour per code; '
                  'inspect.json holds the indices.', rows, numbers)


def _appearance(moment):
    """Fig. 11: features before and after compensation."""
    generated = moment.generated
    rows = [Row(f'scale {i}', [Panel('feature', 'warped', warped, basis=f'scale {i}'),
                               Panel('feature', 'compensated', compensated, basis=f'scale {i}')])
            for i, (warped, compensated) in enumerate(zip(generated.warped, generated.compensated), 1)]
    return Figure('appearance', 'Appearance', 'Warped features before and after compensation (Fig. 11), in the same '
                  'colours. The ablation shows the effect on the frame.', rows, {})


def _reads(model, moment):
    """Cross-attention of the position `moment.at` over the codes, mean over heads and layers."""
    books = [(name, module) for name, module in (('motion', getattr(model, 'motion', None)),
                                                 ('appearance', getattr(model, 'appearance', None))) if module]
    with ExitStack() as stack:
        calls = {name: [stack.enter_context(calls_of(layer.cross_attention)) for layer in module.retrieval.layers]
                 for name, module in books}
        model.render(moment.state, moment.keypoints)

    rows, numbers = [], {}
    for name, module in books:
        flows = motion_code_flows(module) if name == 'motion' else None
        token = moment.token(module.retrieval.size[0])
        for scale, part in enumerate(module.codebook.slices):
            weights = torch.stack([layer.cross_attention.weights(*seen[scale])[0, :, token].mean(0)
                                   for layer, seen in zip(module.retrieval.layers, calls[name])]).mean(0)   # (K_i,)
            top = weights.topk(min(READ_CODES, len(weights)))
            codes = [{'code': int(index) + part.start, 'share': float(share)} for share, index in zip(*top)]
            numbers[f'{name} {scale + 1}'] = codes
            panels = [Panel('bars', f'{name}, scale {scale + 1}', weights,
                            f'{len(weights)} codes, perplexity {perplexity(weights):.1f}')]
            panels += [_code_panel(name, code, flows) for code in codes]
            rows.append(Row('', panels))
    x, y = moment.at
    return Figure('reads', f'Codes read for x {x}, y {y}',
                  'Share of cross-attention per code, mean over heads and layers, and the codes with the largest '
                  'shares: the flow that a motion code decodes to, or the image window nearest to an appearance code, '
                  'black if no window chose it.', rows,
                  {'at': [x, y], 'codes': numbers})


def _code_panel(book, code, flows):
    """Panel of one code: its flow if `flows` are given, else the image window nearest to it."""
    title, note = f'code {code["code"]}', f'{100 * code["share"]:.1f} %'
    if flows is None:
        return Panel('code', title, torch.tensor(code['code']), note, basis=book)
    return Panel('residual', title, flows[code['code']][None], note)
