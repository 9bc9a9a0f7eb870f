"""What executes an image and catches its exits."""
