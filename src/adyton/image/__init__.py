"""Enclave images: what they are, how they are built, signed, measured and read. No module here runs any of an image's code.

manifest   what an image says about itself           oci        the image file and its measurement
archive    tar, strictly, both ways                  layers     files in a layer, and back into a folder
dsse       signed envelopes                          sign       signatures of images
project    [tool.adyton] of pyproject.toml           script     images of a single .py file
entries    entries and their types, read with ast    build      all of it together
"""
