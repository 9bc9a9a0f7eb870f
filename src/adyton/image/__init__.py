"""Enclave images: what they are, how they are built, signed, measured and read.

    manifest    what an image says about itself            versions      ranges of versions
    oci         the image file and its measurement         archive       tar, strictly, both ways
    layers      layers back into a folder                  describe      what `adyton inspect` shows
    dsse        signed envelopes                           signature     what a signature of an image says
    sign        signing, and which signature counts        dependencies  what an image may depend on
    pyproject   what [tool.adyton] declares                project       images and loaders of a project
    build       images of a single .py file                sources       which files go into an image
    names       what names in the sources stand for        entries       entries and their types
    protos      modules of .proto files

No module here runs any of an image's code.
"""
