"""Files of an enclave's own on a disk that nobody has to trust: ciphertext in one container, and its changes all at once or not at all. Sans-IO.

    store       all objects (files, directories, links) by number; `commit` makes every change since the last one durable
    contents    one object's bytes: a tree of blocks, in which each node authenticates those below it
    space       which slots of the container are in use
    superblock  the root of all that, sealed, twice
    memory      what another party remembers, by which a container that was set back is found
    cipher      keys and single blocks
    storage     what is asked of the disk, and how it fails

docs/sealed-files.md says what is hidden, what is found, and what is not.
"""
