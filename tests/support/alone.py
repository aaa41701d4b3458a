"""Processes that can reach this machine alone."""

import os

from tests.support.tiny import ROOT

# Of every Python process that starts with it on its path: this machine alone can be reached.
LOOPBACK_ALONE = '''
import os, sys
def watch(event, arguments):
    if event not in ('socket.connect', 'socket.bind', 'socket.getaddrinfo', 'socket.sendto', 'socket.gethostbyname'):
        return
    address = arguments[0] if event in ('socket.getaddrinfo', 'socket.gethostbyname') else arguments[1]
    host = address[0] if isinstance(address, tuple) else address
    if host not in ('127.0.0.1', 'localhost', '::1', None) and isinstance(address, (tuple, str)) and host[:1] != '/':
        with open(os.environ['REACHED'], 'a') as file:
            print(event, arguments, file=file)
        raise OSError(f'no network: {event} {arguments}')
sys.addaudithook(watch)
'''


def alone(folder):
    """(environment of processes that reach this machine alone, the file that tells where else they wanted to go)."""
    (folder / 'sitecustomize.py').write_text(LOOPBACK_ALONE)
    return os.environ | {'PYTHONPATH': f'{folder}:{ROOT}', 'REACHED': str(folder / 'reached.txt'),
                         'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder)}, folder / 'reached.txt'
