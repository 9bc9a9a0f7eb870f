"""AMD SEV-SNP: reports of versions 2 to 5, signed by a chip's own key (VCEK) or a cloud's (VLEK), of Milan, Genoa and Turin.

`abi`: bytes to fields. `certificates`: AMD's, what they say of a chip, and their chain. `tcb`: which firmware is good enough. `verify`: whether
a report is genuine. Sources: AMD 56860 (SEV-SNP firmware ABI), 57230 (VCEK certificates and KDS).
"""
