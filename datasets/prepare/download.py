"""Downloads of YouTube videos by the external program yt-dlp, with its error messages.

https://github.com/yt-dlp/yt-dlp
"""

import shutil
import subprocess
from pathlib import Path

from datasets.video import VIDEO_SUFFIXES
from datasets.prepare.metadata import NoClip
from support.errors import UserError

# A video stream without sound is one file; no second program has to merge streams.
_PICTURES_ONLY = ('-f', 'bv*[ext=mp4]/bv*/b')


def check_command(command):
    """UserError if the program is missing; command: list, the program and its options."""
    if not command or shutil.which(command[0]) is None:
        raise UserError(f'--download: there is no program {" ".join(command[:1]) or "named"}; '
                        'pip install yt-dlp, or give its path')


def download(command, video_id, folder):
    """Download a YouTube video into `folder`, resuming a broken transfer; returns its path.

    command: list, yt-dlp and its options (cookies, proxy, rate ...)
    Raises NoClip with the program's message.
    """
    chosen = () if {'-f', '--format'} & set(command) else _PICTURES_ONLY
    done = subprocess.run([*command, *chosen, '--no-playlist', '--no-progress', '-P', str(folder),
                           '-o', '%(id)s.%(ext)s', '--', f'https://www.youtube.com/watch?v={video_id}'],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
    path = next((path for suffix in VIDEO_SUFFIXES if (path := Path(folder, video_id + suffix)).is_file()), None)
    if done.returncode or path is None:
        raise NoClip(f'{Path(command[0]).name}: {_reason(done)}')
    return path


def _reason(done):
    """The program's error messages, else its last line."""
    lines = [line.strip() for line in (done.stderr + '\n' + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('ERROR')]
    said = ' '.join(errors or lines[-1:])
    return said or f'ended with code {done.returncode}, without a message'
