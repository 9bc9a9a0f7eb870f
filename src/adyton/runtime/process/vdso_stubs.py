"""Machine code for x86-64 that stands in for three functions of the vDSO, see vdso.py: position, bytes, instruction.

It lies behind its HEAD, which holds the addresses of the kernel's functions, and that at a page's start; `offset` is the start of the page
before. Of realtime (clock 0) and TAI (11) it makes the monotonic clock (1) and the offset, of realtime's coarse one (5) the monotonic's
(6). Where the offset is 0, and for all other clocks, the kernel's function goes on in its place. A time zone asked for is {0, 0}.
"""

from __future__ import annotations

import struct

HEAD = struct.Struct("<QQQ8x")  # the kernel's clock_gettime, gettimeofday and time

_LISTING = """
# clock_gettime
020  f30f1efa                endbr64
024  48833dd4efffff00        cmpq $0,offset
02c  740e                    je 3c
02e  85ff                    test %edi,%edi
030  7417                    je 49
032  83ff0b                  cmp $11,%edi
035  7412                    je 49
037  83ff05                  cmp $5,%edi
03a  7406                    je 42
03c  ff25beffffff            jmp *kernel_clock_gettime
042  bf06000000              mov $6,%edi
047  eb05                    jmp 4e
049  bf01000000              mov $1,%edi
04e  56                      push %rsi
04f  4883ec10                sub $16,%rsp
053  4889e6                  mov %rsp,%rsi
056  ff15a4ffffff            call *kernel_clock_gettime
05c  488b0424                mov (%rsp),%rax
060  4869c000ca9a3b          imul $1000000000,%rax,%rax
067  4803442408              add 8(%rsp),%rax
06c  4803058defffff          add offset,%rax
073  31d2                    xor %edx,%edx
075  b900ca9a3b              mov $1000000000,%ecx
07a  48f7f1                  div %rcx
07d  4883c410                add $16,%rsp
081  5e                      pop %rsi
082  488906                  mov %rax,(%rsi)
085  48895608                mov %rdx,8(%rsi)
089  31c0                    xor %eax,%eax
08b  c3                      ret
08c  90909090                nop, 4 times
# gettimeofday
090  f30f1efa                endbr64
094  48833d64efffff00        cmpq $0,offset
09c  7405                    je a3
09e  4885ff                  test %rdi,%rdi
0a1  7506                    jne a9
0a3  ff255fffffff            jmp *kernel_gettimeofday
0a9  4885f6                  test %rsi,%rsi
0ac  7407                    je b5
0ae  48c70600000000          movq $0,(%rsi)
0b5  57                      push %rdi
0b6  4883ec10                sub $16,%rsp
0ba  bf01000000              mov $1,%edi
0bf  4889e6                  mov %rsp,%rsi
0c2  ff1538ffffff            call *kernel_clock_gettime
0c8  488b0424                mov (%rsp),%rax
0cc  4869c000ca9a3b          imul $1000000000,%rax,%rax
0d3  4803442408              add 8(%rsp),%rax
0d8  48030521efffff          add offset,%rax
0df  31d2                    xor %edx,%edx
0e1  b900ca9a3b              mov $1000000000,%ecx
0e6  48f7f1                  div %rcx
0e9  4883c410                add $16,%rsp
0ed  5f                      pop %rdi
0ee  488907                  mov %rax,(%rdi)
0f1  4889d0                  mov %rdx,%rax
0f4  31d2                    xor %edx,%edx
0f6  b9e8030000              mov $1000,%ecx
0fb  48f7f1                  div %rcx
0fe  48894708                mov %rax,8(%rdi)
102  31c0                    xor %eax,%eax
104  c3                      ret
105  9090909090909090909090  nop, 11 times
# time
110  f30f1efa                endbr64
114  48833de4eeffff00        cmpq $0,offset
11c  7506                    jne 124
11e  ff25ecfeffff            jmp *kernel_time
124  57                      push %rdi
125  4883ec10                sub $16,%rsp
129  bf06000000              mov $6,%edi
12e  4889e6                  mov %rsp,%rsi
131  ff15c9feffff            call *kernel_clock_gettime
137  488b0424                mov (%rsp),%rax
13b  4869c000ca9a3b          imul $1000000000,%rax,%rax
142  4803442408              add 8(%rsp),%rax
147  480305b2eeffff          add offset,%rax
14e  31d2                    xor %edx,%edx
150  b900ca9a3b              mov $1000000000,%ecx
155  48f7f1                  div %rcx
158  4883c410                add $16,%rsp
15c  5f                      pop %rdi
15d  4885ff                  test %rdi,%rdi
160  7403                    je 165
162  488907                  mov %rax,(%rdi)
165  c3                      ret
"""


def _assembled() -> tuple[bytes, dict[str, int]]:
    code, entries = bytearray(), {}
    for line in _LISTING.strip().splitlines():
        if line.startswith("# "):
            entries[line[2:]] = HEAD.size + len(code)
            continue
        position, digits, _ = line.split(maxsplit=2)
        assert int(position, 16) == HEAD.size + len(code), line
        code += bytes.fromhex(digits)
    return bytes(code), entries


CODE, ENTRIES = _assembled()
