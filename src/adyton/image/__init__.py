"""Enclave images: what they are, how they are built, signed, measured and read.

    manifest    what an image says about itself            versions      ranges of versions
    oci         the image file and its measurement         archive       tar, strictly, both ways
    layers      layers back into a folder                  describe      what `adyton inspect` shows
    dsse        signed envelopes                           signature     what a signature of an image says
    sign        signing, and which signature counts        cache         what was built for this user before
    pyproject   what [tool.adyton] declares                project       images and loaders of a project
    build       images of a single .py file                sources       which files go into an image
    names       what names in the sources stand for        entries       entries and their types
    protos      modules of .proto files                    dependencies  from requirements to a layer:
    requirements  of the runtime, and others               resolver      uv: wheels for them
    lock        adyton.lock: which wheels                  site_packages the layer that they make
    platforms   what compiled code runs on

No module here runs any of an image's code.
"""
