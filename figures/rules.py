"""What a comparison can be asked for by name. Imports nothing slow: the command line checks words against it."""

RULES = ('largest_pose', 'worst', 'best')
BY_SCORE = RULES[1:]                 # they need the truth, and all frames
PARTS = ('mouth', 'eyes')            # of a face, to enlarge


def rule_text(rule, methods, rendered):
    """How frames were chosen; rule: of RULES, or indices; methods, rendered: names of all, and of those that render."""
    if rule not in RULES:
        many = len(rule) > 1
        return f'Frame{"s" * many} {", ".join(map(str, rule))} of each driving video, counted from 0.'
    if rule in BY_SCORE:
        return (f'Of each pair the frame at which {methods[0]} has its {"lowest" if rule == "worst" else "highest"} '
                'PSNR.')
    what = f'keypoints, by {rendered[0]}, lie' if rendered else 'pixels are'
    return f"Of each pair the driving frame whose {what} farthest from those of the driving video's first frame."
