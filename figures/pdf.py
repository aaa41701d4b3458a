"""A picture as a PDF of one page at its printed size, lossless: PIL would compress it as a JPEG."""

import zlib

POINTS = 72               # of PDF, per inch


def as_pdf(picture, dpi):
    """Bytes of a PDF that shows `picture` (H, W, 3) uint8 at `dpi` pixels per inch and nothing else."""
    height, width, _ = picture.shape
    page_width, page_height = (round(side * POINTS / dpi, 3) for side in (width, height))
    draw = f'q {page_width} 0 0 {page_height} 0 0 cm /Picture Do Q'.encode()
    image = (f'/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB '
             '/BitsPerComponent 8 /Filter /FlateDecode')
    parts = [b'<< /Type /Catalog /Pages 2 0 R >>', b'<< /Type /Pages /Kids [3 0 R] /Count 1 >>',
             (f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {page_width} {page_height}] /Contents 4 0 R '
              '/Resources << /XObject << /Picture 5 0 R >> >> >>').encode(),
             _stream('', draw), _stream(image, zlib.compress(picture.tobytes(), 9))]

    data, starts = b'%PDF-1.4\n', []
    for number, part in enumerate(parts, 1):
        starts.append(len(data))
        data += b'%d 0 obj\n%s\nendobj\n' % (number, part)
    table = b''.join(b'%010d 00000 n \n' % start for start in starts)
    return data + (b'xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n'
                   % (len(parts) + 1, table, len(parts) + 1, len(data)))


def _stream(about, data):
    return b'<< %s /Length %d >>\nstream\n%s\nendstream' % (about.encode(), len(data), data)
