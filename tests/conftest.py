"""What every process of the tests is set to; the fixtures are those of ``tests/fixtures.py``."""

import gc
import importlib
import os

os.environ["COLUMNS"] = "100"  # of the terminal that the command line writes to
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start


def pytest_configure(config):
    """Import the fixtures, and with them torch, where tests run: the process that hands tests out needs none."""
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        gc.disable()  # what is imported stays
        # As the command line does; the process that hands tests out does not import it.
        importlib.import_module("robgib.cli.app").keep_freed_memory()
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
