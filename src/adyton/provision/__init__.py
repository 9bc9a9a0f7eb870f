"""Getting a proxy server for an image: locally, from a provision server, and being one."""
