"""The tests; a package, so that `tests.tiny_model` is this one and no installed package's."""
