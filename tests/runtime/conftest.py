"""A fixture that restores the logging configuration after each test."""

import logging

import pytest

from llama_cpt.runtime import logs


@pytest.fixture(autouse=True)
def unchanged_logging(monkeypatch):
    """Restore the handlers, the levels and the process index of the log after each test."""
    handlers = logging.root.handlers[:]
    loggers = [logging.root, logging.getLogger("llama_cpt"), logging.getLogger("__main__")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(logs, "_process_index", 0)
    yield
    logging.root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
