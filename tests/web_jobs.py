"""Jobs for a worker whose process imports nothing slow."""

import os
import time


def loads(checkpoint):
    return checkpoint.upper()


def ask_for(bench, checkpoint):
    return bench.model(checkpoint)


def fail(bench, error):
    raise error


def die(bench):
    os._exit(1)


def count(bench, total):
    counter = bench.counter(total)
    for _ in range(total):
        counter()
        time.sleep(0.02)
    return total


def hang(bench):
    time.sleep(1000)
