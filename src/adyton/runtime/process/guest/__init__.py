"""What runs in the guest: the image's code, and the threads that enter it."""
