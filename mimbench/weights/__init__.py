"""Released weights: what there is, where it lies, and how it becomes an encoder of ours.

``entries`` is the catalogue (one ``Entry`` a released file), ``obtain`` fetches a file, ``foreign`` reads it
without running any of it, ``origin`` says how the tensors of one family of files become ours, ``convert``
does that, tensor by tensor, into an ``encoder.safetensors`` with its provenance inside, ``cached`` does both
once, and ``given`` turns what a user writes (``mae@vit_base``, ``timm:NAME``, ``hf:REPO``, ``file:PATH``)
into such a file.
"""
