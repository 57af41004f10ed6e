"""Puts toy.run in the place of train.run, whose import takes seconds: Python imports this file by itself."""

import sys
import types


def run(cfg):
    import toy

    toy.run(cfg)


stub = types.ModuleType("train.run")
stub.run = run
sys.modules["train.run"] = stub
