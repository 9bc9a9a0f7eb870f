"""What runs in the guest: the image's code, and the threads that enter it."""

CLOCK = "/opt/adyton/clock"  # where a guest sees the directory of what its clock follows
PRIVATE_ATTRIBUTE = (
    "system.adyton.private"  # of what the enclave itself has made in its root's file system; no client can give it
)
CLOCK_FILE = f"{CLOCK}/offset"
