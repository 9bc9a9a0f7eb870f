"""What runs in the guest: the image's code, and the threads that enter it."""

CLOCK = "/opt/adyton/clock"  # where a guest sees the directory of what its clock follows
CLOCK_FILE = f"{CLOCK}/offset"
