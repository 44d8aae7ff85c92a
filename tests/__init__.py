"""A package, so that ``tests.…`` is this one: mmsegmentation installs one of that name too."""
