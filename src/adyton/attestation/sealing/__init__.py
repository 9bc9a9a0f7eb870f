"""Sealing: what an enclave keeps encrypted, so that it, or its successors, on the same platform can read it again, and nobody else.

    platform's root key ── HKDF-SHA-256 ── the whole header ──► a key of that header's alone ── AES-256-GCM-SIV ──► segments

`header` says to whom data is sealed; `roots` are the platforms' keys; `keys` refuses headers that are not this enclave's, and derives; `segments`
encrypts. The root, and the derivation, are in the process that asks the hardware (`runtime.process.attester`); the rest is in supervisors, each with the keys of its
own enclave, which never leave it.

Why the runtime decides, and why that is sound. Hardware gives one key to whatever it has measured. On SEV-SNP and under SGX that is the runtime (the
machine with its kernel, or the enclave with its libraries) and not an image, which the runtime loads and measures itself. So

1. the root is one that only this runtime gets: the measurement of the runtime is mixed into it by the hardware, always, also for what is sealed to
   a signer. (A root for whatever one signer of *runtimes* signs would be had by any runtime of that signer, with an old flaw, say, and no client's policy names
   that signer: `[expect] runtime` names measurements.) A runtime that was changed, so as to leave out the checks of `keys`, gets another root, and nothing opens.
2. this runtime derives a key only for the image that it has itself measured, and whose signature it has verified before any of it ran; that
   identity is what its evidence says. The image's identity is in the header, and the whole header in the derivation: `keys` compares it with the enclave's own first.
3. one runtime has many enclaves, of many owners. Their programs get neither root nor keys, but bytes that are sealed or opened, by their own supervisor.

What follows: data does not survive another runtime, nor another machine. What must, has to be sealed under a key that is released to enclaves by their evidence.

A program's debug flag is in each header, too: an image that is signed for debugging opens nothing of production's, nor the other way round. The key of debug signatures
is public, so that anyone can sign with it: nothing is sealed to it.
"""
