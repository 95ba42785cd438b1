"""stub."""


def build():
    return []
