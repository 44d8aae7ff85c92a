"""Registers things that are not what their groups hold."""

NUMBER = 3


def no_protocol():
    return None
