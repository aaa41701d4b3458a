"""Seeded damage to valid inputs: bytes, text, and nested values."""

import copy
import math

# What people and broken programs put where something else belongs.
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 2 ** 31 - 1, 2 ** 31, 2 ** 63, -2 ** 63, 10 ** 30, 0.0, -0.0, 0.5, -1.5, 1e-320,
           1e308, -1e308, math.inf, -math.inf, math.nan)
WORDS = ('', ' ', 'null', 'true', 'no', '~', '1e-5', '1_000', '0x10', '1:30', '08', '-', '...', 'a' * 5000, 'é', '名前',
         '\u202etxt', 'р' + 'aypal', '\x00', '\n', '\t', '"', "'", '#', '%s%n', '{}', '[]', '${HOME}', '`id`', '$(id)',
         '; rm -rf x', '/', '/etc/passwd', '..', '../..', '../../../../tmp/out', './x', '~/x', 'con', '.', '.hidden',
         '-rf', '--help', 'x' * 255, 'x/' * 2000, 'file:///etc/passwd', 'http://127.0.0.1:1/', 'fd:0', 'concat:a|b')
OTHERS = (None, True, False, [], {}, [[]], {'': None}, [None], {'a': {'b': {'c': 1}}}, (1, 2))


def value(rng):
    """A value of any kind."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, WORDS, OTHERS))))


# ---------------------------------------------------------------------------- bytes

def damaged_bytes(rng, data):
    """`data`, broken in one to three ways."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        rng.choice((_flip, _flip, _overwrite, _cut, _remove, _repeat, _insert, _exchange))(rng, data)
    return bytes(data)


def _place(rng, data):
    """Anywhere, or near the beginning or the end, where headers are."""
    near = min(len(data), 512)
    return rng.choice((rng.randrange(len(data) + 1), rng.randrange(near + 1), len(data) - rng.randrange(near + 1)))


def _flip(rng, data):
    for _ in range(rng.choice((1, 1, 1, 4, 32))):
        if data:
            data[min(_place(rng, data), len(data) - 1)] ^= 1 << rng.randrange(8)


def _overwrite(rng, data):
    at, width = _place(rng, data), rng.choice((1, 2, 4, 8))
    if at + width <= len(data):
        data[at:at + width] = rng.choice((b'\0' * 8, b'\xff' * 8, b'\x7f' + b'\xff' * 7, b'\x80' + b'\0' * 7,
                                          b'\xff' * 7 + b'\x7f', rng.randbytes(8)))[:width]


def _cut(rng, data):
    del data[_place(rng, data):]


def _remove(rng, data):
    at = _place(rng, data)
    del data[at:at + rng.choice((1, 4, 16, 512, 4096))]


def _repeat(rng, data):
    at, width = _place(rng, data), rng.choice((1, 8, 512, 4096))
    data[at:at] = data[at:at + width]


def _insert(rng, data):
    data[(at := _place(rng, data)):at] = rng.randbytes(rng.choice((1, 2, 16, 1024)))


def _exchange(rng, data):
    a, b, width = _place(rng, data), _place(rng, data), rng.choice((1, 4, 64))
    if max(a, b) + width <= len(data):
        data[a:a + width], data[b:b + width] = data[b:b + width], data[a:a + width]


# ---------------------------------------------------------------------------- text

def damaged_text(rng, text, separators=',\n'):
    """`text` as bytes, with one to three fields, lines or characters exchanged, or its encoding broken."""
    for _ in range(rng.randint(1, 3)):
        text = rng.choice((_field, _field, _field, _line, _line, _character))(rng, text, separators)
    data = text.encode('utf-8', 'surrogatepass')
    return rng.choice((lambda: data, lambda: data, lambda: data, lambda: b'\xef\xbb\xbf' + data,
                       lambda: text.encode('utf-16'), lambda: data.replace(b'\n', b'\r\n'),
                       lambda: damaged_bytes(rng, data)))()


def _field(rng, text, separators):
    """Another value between two separators."""
    marks = [i for i, character in enumerate(text) if character in separators]
    if len(marks) < 2:
        return text + str(value(rng))
    n = rng.randrange(len(marks) - 1)
    return text[:marks[n] + 1] + str(value(rng)) + text[marks[n + 1]:]


def _line(rng, text, separators):
    lines = text.split('\n')
    n = rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        del lines[n]
    elif change == 1:
        lines.insert(n, lines[rng.randrange(len(lines))])
    elif change == 2:
        lines[n] = str(value(rng))
    elif change == 3:
        lines[n] = lines[n] + rng.choice((',', ',,,', ',x' * 50, ' ', '\x00'))
    else:
        rng.shuffle(lines)
    return '\n'.join(lines)


def _character(rng, text, separators):
    at = rng.randrange(len(text) + 1)
    sign = rng.choice('\x00\t\r\n\x0b"\'{}[]:,#&*!|>%@`\\\ufeff\u2028\U0001f600')
    return text[:at] + sign + text[at + rng.randint(0, 1):]


# ---------------------------------------------------------------------------- nested values

def damaged_tree(rng, tree):
    """A copy of nested dicts and lists with one to three values or keys exchanged, added, removed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        change = rng.randrange(6)
        if change < 3:
            holder[key] = _near(rng, holder[key]) if rng.random() < 0.5 else value(rng)
        elif change == 3:
            del holder[key]
        elif change == 4 and isinstance(holder, dict):
            holder[rng.choice((str(key) + 'x', str(value(rng)), key, 3, None))] = value(rng)
        else:
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other.get(at) if isinstance(other, dict) else other)
    return tree


def _places(tree):
    """(holder, key) of every value below."""
    for key, below in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(below, (dict, list)):
            yield from _places(below)


def _near(rng, old):
    """A value of the same type, plausible or not."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, old // 2, 0, 1, 3, 10 ** 12))
    if isinstance(old, float):
        return rng.choice((-old, old * 10, old / 3, 0.0, 1.0, 2.0, math.nan, math.inf, 1e300))
    if isinstance(old, list):
        return rng.choice((old * 2, old[:-1], old[::-1], old + [value(rng)], [], [old]))
    if isinstance(old, dict):
        return {key: below for key, below in old.items() if rng.random() < 0.7}
    return value(rng)
