"""The `process` runtime: CPython and native code in namespaces of its own, under a syscall filter."""
