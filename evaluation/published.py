"""Tables 1 to 4 of the paper, arXiv 2412.00719: means over all frames of 50 clips of a dataset, at 256 px.

The paper does not publish its lists of clips. Its rows are shown for orientation, beside results on 50 other clips of
the same dataset at the same size, and are not ranked with them.
"""

SIZE = (256, 256)

# The metric that computes each column of the paper.
SAME_IDENTITY = {'FID': 'fid.source_vs_generated', 'PSNR': 'psnr.rgb', 'L1': 'l1.mean_abs', 'LPIPS': 'lpips.vgg',
                 'AKD': 'akd.mean_abs_xy', 'AED': 'aed.openface_sq'}
CROSS_IDENTITY = {'FID': 'fid.source_vs_generated', 'CSIM': 'csim.antelopev2', 'ARD': 'ard.mediapipe'}


def _rows(columns, text):
    """'name: value value ...' per line -> {name: {metric id: value}}."""
    rows = (line.strip().split(': ') for line in text.strip().splitlines())
    return {name: dict(zip(columns.values(), map(float, values.split()))) for name, values in rows}


TABLES = {
    'Table 1, VoxCeleb1': _rows(SAME_IDENTITY, """
        FOMM: 53.97 22.96 0.0474 0.2200 1.4037 0.1509
        DaGAN: 51.55 22.92 0.0492 0.2251 1.5740 0.1652
        MCNet: 51.45 24.59 0.0402 0.1996 1.2363 0.1254
        MRFA: 48.49 25.26 0.0370 0.1872 1.1823 0.1188
        AniPortrait: 52.65 20.15 0.0637 0.2767 2.6543 0.2623
        Follow-Your-Emoji: 43.25 19.54 0.0714 0.2954 2.7071 0.2652
        the paper: 43.15 25.30 0.0355 0.1846 1.2039 0.1071"""),
    'Table 1, CelebV-HQ': _rows(SAME_IDENTITY, """
        FOMM: 78.15 20.92 0.0685 0.2925 3.6098 0.2955
        DaGAN: 99.84 20.49 0.0781 0.3209 7.6075 0.3301
        MCNet: 78.33 22.20 0.0640 0.2732 4.1386 0.2903
        MRFA: 75.73 22.41 0.0625 0.2670 3.7166 0.2527
        AniPortrait: 61.56 19.71 0.0748 0.2878 2.2397 0.2739
        Follow-Your-Emoji: 62.55 19.58 0.0802 0.3006 4.8637 0.3029
        the paper: 71.78 22.40 0.0610 0.2608 3.2562 0.2825"""),
    'Table 2': _rows(SAME_IDENTITY, """
        baseline, no codebook: 47.83 24.93 0.0375 0.1954 1.2384 0.1106
        + SMC: 49.00 24.97 0.0371 0.1917 1.2183 0.1167
        + MMC: 44.86 25.27 0.0360 0.1875 1.2171 0.1076
        + MMC + SAC: 44.32 25.16 0.0362 0.1856 1.2106 0.1091
        + MMC + MAC: 43.15 25.30 0.0355 0.1846 1.2039 0.1071"""),
    'Table 3': _rows(CROSS_IDENTITY, """
        AniPortrait: 66.61 0.7226 2.9146
        Follow-Your-Emoji: 60.05 0.7558 3.0822
        FOMM: 80.00 0.6010 1.8331
        DaGAN: 85.32 0.5743 2.0604
        MCNet: 82.72 0.5618 1.6970
        MRFA: 77.63 0.5962 1.5903
        the paper: 76.47 0.6142 1.6234"""),
    'Table 4': _rows(SAME_IDENTITY, """
        all shared: 43.23 25.12 0.0359 0.1860 1.2124 0.1065
        split equally: 42.52 25.20 0.0358 0.1857 1.1893 0.1075
        progressive: 43.15 25.30 0.0355 0.1846 1.2039 0.1071"""),
}

# (protocol, list) -> tables.
_TABLES_OF = {
    ('same-identity', 'voxceleb1-50'): ('Table 1, VoxCeleb1', 'Table 2', 'Table 4'),
    ('celebv-hq', 'celebv-hq-50'): ('Table 1, CelebV-HQ',),
    ('cross-identity-relative', 'voxceleb1-50-cross'): ('Table 3',),
}


def published_tables(protocol, list_name, sizes):
    """Names of the TABLES that may be shown beside a result.

    protocol, list_name: names
    sizes:               set of (height, width) of the scored frames
    """
    return _TABLES_OF.get((protocol, list_name), ()) if sizes == {SIZE} else ()
