"""inotify(7) in an enclave: `instances` (queues and watches), `watching` (who is told of what), `happenings` (what requests mean), `calls`."""
