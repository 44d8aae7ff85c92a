"""One module a family of released files: what shows that our encoder gives the reference's tokens."""

import mimbench.torchvision_compat  # noqa: F401  before timm is imported anywhere
