"""Conversion between frames and tensors, drawing of flows, errors and keypoints, sheets, PNG files.

A frame or image is a NumPy array (H, W, 3), uint8, RGB. No function modifies its arguments.
"""

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from datasets.still import resized
from modules.warp import to_displacement
from support.files import encoded, write_bytes

CELL = 192             # height of every cell of a sheet, pixels
MARGIN = 4             # between cells, pixels
TEXT = 16              # height of the text, pixels
STRIP = TEXT + 8       # height of a line of text, pixels
MOMENTS = 4            # frames of a clip in a sheet
ROWS = 6               # clips in a sheet
FULL_COLOUR = 0.1      # displacement drawn fully saturated, as a fraction of the width
FULL_ERROR = 0.5       # error drawn white, for pixels in [0, 1]
BACKGROUND, INK = (24, 24, 24), (235, 235, 235)


# Files

def save_png(path, image, **texts):
    """Write `image` (H, W, 3) uint8 to `path` atomically, with `texts` as PNG text chunks."""
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    write_bytes(path, encoded(Image.fromarray(image).save, format='PNG', pnginfo=chunks))


# Between frames and tensors

def to_tensor(frames, device='cpu'):
    """Frames of one size -> (B, 3, H, W) float32 in [-1, 1] on `device`."""
    return from_bytes(torch.from_numpy(np.stack(frames)).to(device))       # bytes are copied, then converted


def to_unit_range(frames, device='cpu'):
    """Frames of one size -> (B, 3, H, W) float32 in [0, 1] on `device`, as metrics take them."""
    return torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def from_bytes(frames):
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], on the same device."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images):
    """(B, 3, H, W) nominally in [-1, 1] -> (B, H, W, 3) uint8 on the CPU, clamped and rounded."""
    return to_bytes(images).cpu().numpy()


def to_bytes(images):
    """As `to_uint8`, but a tensor on the same device."""
    images = images.detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return images.to(torch.uint8).permute(0, 2, 3, 1)


def beside(*frames):
    """Join frames of one height side by side."""
    return np.concatenate(frames, axis=1)


# Quantities as colours

def flow_to_rgb(flow):
    """Flow (B, h, w, 2), positions (x, y) in [-1, 1] -> (B, h, w, 3) uint8 colours of its displacement.

    Hue is the direction, saturation the length up to FULL_COLOUR; white means no motion.
    """
    motion = to_displacement(flow.detach().float()).cpu().numpy() / (flow.shape[2] * FULL_COLOUR)   # (B, 2, h, w)
    return motion_to_rgb(motion)


def motion_to_rgb(motion):
    """Displacements (B, 2, h, w), x and y, in units of full saturation -> (B, h, w, 3) uint8."""
    angle, length = np.arctan2(motion[:, 1], motion[:, 0]), np.hypot(motion[:, 0], motion[:, 1]).clip(0, 1)
    # Three cosines, 120 degrees apart, give the hue; the length blends it with white.
    phase = angle[..., None] - np.array([0, 2, 4]) * np.pi / 3
    hue = 0.5 + 0.5 * np.cos(phase)                                                                  # (B, h, w, 3)
    return (255 * (1 - length[..., None] * (1 - hue))).round().astype(np.uint8)


def occlusion_to_rgb(occlusion):
    """Occlusion (B, 1, h, w) in [0, 1] -> (B, h, w, 3) uint8 grey; white where the source is visible."""
    return to_uint8(occlusion.expand(-1, 3, -1, -1) * 2 - 1)


def error_to_rgb(prediction, target):
    """Frames (B, H, W, 3) uint8 -> (B, H, W, 3) uint8: mean absolute error from black over red and yellow to white."""
    error = np.abs(prediction.astype(np.float32) - target).mean(axis=-1) / 255
    return heat_to_rgb(error / FULL_ERROR)


def heat_to_rgb(amount):
    """Amounts (...) in [0, 1] -> (..., 3) uint8: black, red, yellow, white."""
    heat = (np.asarray(amount)[..., None] * 3 - np.arange(3)).clip(0, 1)
    return (255 * heat).round().astype(np.uint8)


def draw_keypoints(image, keypoints):
    """A copy of `image` with keypoints (K, 2), (x, y) in [-1, 1], as discs in a colour per index.

    -1 and 1 are the centres of the first and the last pixel. Keypoints outside are cut off.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    radius = max(2, width // 64)
    for k, (x, y) in enumerate(np.asarray(keypoints, dtype=np.float64)):
        x, y = round((x + 1) / 2 * (width - 1)), round((y + 1) / 2 * (height - 1))
        red, green, blue = colorsys.hsv_to_rgb(k / len(keypoints), 1, 1)
        colour = tuple(round(255 * channel) for channel in (red, green, blue))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(0, 0, 0))
    return np.asarray(picture)


def draw_crop(image, boxes, square):
    """A copy of `image` with numbered boxes (x0, y0, x1, y1), pixels, and a thicker square around the crop."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(1, image.shape[0] // 240)
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=(255, 255, 255), width=line)
        draw.text((box[0] + 2 * line, box[1] + line), str(number), (255, 255, 255), ImageFont.load_default(10 * line))
    draw.rectangle((square.left, square.top, square.left + square.side - 1, square.top + square.side - 1),
                   outline=(255, 160, 0), width=2 * line)
    return np.asarray(picture)


# Sheets

def enlarge(image, cell=CELL):
    """`image` at the height of a cell; integer factors repeat pixels, so that coarse maps look coarse."""
    height, width = image.shape[:2]
    size = (round(width * cell / height), cell)
    return np.asarray(Image.fromarray(image).resize(size, Image.NEAREST if cell % height == 0 else Image.LANCZOS))


def grid(rows, titles, captions=None):
    """A sheet of rows of images.

    rows:     lists of images of any size; a short row leaves its last cells empty
    titles:   one text per column, above the first row
    captions: one text per row, above it; None for none
    returns:  (H, W, 3) uint8
    """
    rows = [[enlarge(image) for image in row] for row in rows]
    font = ImageFont.load_default(TEXT)
    column = MARGIN + max(image.shape[1] for row in rows for image in row)
    line = MARGIN + CELL + (STRIP if captions else 0)
    sheet = Image.new('RGB', (MARGIN + column * len(titles), STRIP + line * len(rows) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    for i, title in enumerate(titles):
        draw.text((MARGIN + column * i + 2, 3), shortened(title, column - MARGIN, font), INK, font)
    for j, row in enumerate(rows):
        top = STRIP + line * j + MARGIN
        if captions:
            draw.text((MARGIN + 2, top), shortened(captions[j], sheet.width - 2 * MARGIN, font), INK, font)
            top += STRIP
        for i, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (MARGIN + column * i, top))
    return np.asarray(sheet)


def shortened(text, width, font):
    """`text`, truncated with an ellipsis to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'


def training_sheet(source, driving, generated, source_keypoints=None, driving_keypoints=None, captions=None):
    """Inputs and outputs of the model, one row per sample, as one image.

    source, driving: (B, 3, H, W) in [-1, 1]
    generated:       Generated for them
    *_keypoints:     their Keypoints, drawn on the images; None draws none
    captions:        one text per row; None for none
    """
    sources, drivings, predictions = to_uint8(source), to_uint8(driving), to_uint8(generated.prediction)
    columns = {
        'source': _with_keypoints(sources, source_keypoints),
        'driving': _with_keypoints(drivings, driving_keypoints),
        'prediction': predictions,
        'error': error_to_rgb(predictions, drivings),
    }
    if generated.first_scale_prediction is not None:
        columns['first scale'] = to_uint8(generated.first_scale_prediction)
    for i, flow in enumerate(generated.flows):
        columns[f'flow {i} ({flow.shape[1]} px)'] = flow_to_rgb(flow)
    for i, occlusion in enumerate(generated.occlusions):
        columns[f'visible {i} ({occlusion.shape[2]} px)'] = occlusion_to_rgb(occlusion)
    return grid(list(zip(*columns.values())), list(columns), captions)


def _with_keypoints(images, keypoints):
    if keypoints is None:
        return images
    # At the size of the sheet: on 64 pixels the discs would hide the face.
    return [draw_keypoints(enlarge(image), points)
            for image, points in zip(images, keypoints.value.detach().float().cpu().numpy())]


class Strip:
    """Collects a few frames of a streaming clip: source, driving frames, results.

    source:     (H, W, 3) uint8, or None
    num_frames: number of frames of the clip
    """

    def __init__(self, source, num_frames, moments=MOMENTS):
        self.source, self.pairs, self.seen = source, [], 0
        # Middles of equal parts, as the first frame is often the source itself.
        self.wanted = {(2 * i + 1) * num_frames // (2 * moments) for i in range(moments)}

    def add(self, driving, made):
        """Add the next driving frames and their results."""
        for pair in zip(driving, made):
            if self.seen in self.wanted:
                self.pairs.append(pair)
            self.seen += 1

    def row(self):
        """[source, driving, result, driving, result, ...]."""
        return [self.source, *(frame for pair in self.pairs for frame in pair)]

    def stacked(self, height):
        """One picture: the source, then driving frames above results, `height` pixels each."""
        left = [] if self.source is None else [_at_height(self.source, 2 * height)]
        return beside(*left, *(np.concatenate([_at_height(frame, height) for frame in pair]) for pair in self.pairs))


def _at_height(image, height):
    return resized(image, (height, round(image.shape[1] * height / image.shape[0])))


def rows_of_sheet(num_clips):
    """Indices of the clips in a contact sheet, evenly spread and ascending."""
    count = min(num_clips, ROWS)
    return [i * num_clips // count for i in range(count)]


def contact_sheet(strips, captions):
    """A sheet of clips, (H, W, 3) uint8; strips: paths of pictures `beside(*Strip.row())` of square frames."""
    pictures = [np.asarray(Image.open(strip)) for strip in strips]
    rows = [np.split(picture, picture.shape[1] // picture.shape[0], axis=1) for picture in pictures]
    percents = [100 * (2 * i + 1) // (2 * MOMENTS) for i in range(MOMENTS)]
    titles = [title for percent in percents for title in (f'driving at {percent} %', 'result')]
    return grid(rows, ['source', *titles], captions)
