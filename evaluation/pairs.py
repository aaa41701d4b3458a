"""Pairs to animate, compare or study, from a list or at random from a test set."""

from pathlib import Path

from datasets.build import test_clips
from datasets.constant_rate import open_constant_rate
from evaluation.cases import Case, ClipFinder, cases_of_list
from evaluation.protocols import RULES, draw_pairs
from support.errors import UserError


def find_pairs(list_name, dataset, size, count, seed):
    """evaluation.cases.Cases of a list, or of random pairs of a test set.

    list_name: as for evaluation.protocols.load_list, or None; a file's clips are in its folder or the test set
    dataset:   DatasetParams of the test set; None without one
    size:      frames are resized to (size, size); None leaves them, except synthetic heads, which need a size
    count, seed: of the random pairs
    raises:    UserError with the row of the list whose clip does not exist
    """
    root = dataset and dataset.root_dir
    at_hand = dataset and size and (not list_name or list_name in RULES or root is None)
    clips = {clip.name: clip for clip in test_clips(dataset, size)} if at_hand else {}
    if not list_name:
        return [Case(item, clips[item.source], clips[item.driver])
                for item in draw_pairs(clips, count=count, seed=seed)]
    folders = [Path(list_name).parent] * Path(list_name).is_file() + ([Path(root, 'test')] if root else [])
    return cases_of_list(list_name, ClipFinder(clips, (), size, folders, open_constant_rate), clips)


def check_whole(cases, list_name, what):
    """The cases; UserError for one that is not a first frame driven by a whole clip. what: the mode, for messages."""
    for case in cases:
        if case.item.source_time or case.item.driving_time is not None:
            raise UserError(f'{list_name}: {case.item.name} has times; {what} needs the first frame of a source and '
                            'a whole driving video')
    return cases
