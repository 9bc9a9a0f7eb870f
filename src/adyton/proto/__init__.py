"""The bottom layer's messages: protobuf of the public interface and of gRPC, and values of calls.

The .proto files lie in the package `adyton` itself, so that users' files can `import "adyton/enclave.proto"`; their modules are
made when adyton is built, and imported from here only.
"""
