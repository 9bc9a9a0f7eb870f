"""Machine code for x86-64 that stands in for three functions of the vDSO, and that puts it there, see vdso.py: position, bytes, instruction.

It lies behind its HEAD, which holds the addresses of the kernel's functions, and that at a page's start; `offset` is the start of the page
before. Of realtime (clock 0) and TAI (11) it makes the monotonic clock (1) and the offset, of realtime's coarse one (5) the monotonic's
(6). Where the offset is 0, and for all other clocks, the kernel's function goes on in its place. A time zone asked for is {0, 0}.

`move` takes an array of (from, size, to), each of eight bytes, and its length: mremap for each. It returns 0; or, when one has failed and
those before it are undone, the negative errno.
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
166  90909090909090909090    nop, 10 times
# move
170  f30f1efa                endbr64
174  53                      push %rbx
175  4154                    push %r12
177  4155                    push %r13
179  4889fb                  mov %rdi,%rbx
17c  4989f4                  mov %rsi,%r12
17f  4531ed                  xor %r13d,%r13d
182  4d39ec                  cmp %r13,%r12
185  7458                    je 1df
187  488b3b                  mov (%rbx),%rdi
18a  488b7308                mov 8(%rbx),%rsi
18e  4889f2                  mov %rsi,%rdx
191  41ba03000000            mov $3,%r10d
197  4c8b4310                mov 16(%rbx),%r8
19b  b819000000              mov $25,%eax
1a0  0f05                    syscall
1a2  483d00f0ffff            cmp $-4096,%rax
1a8  7709                    ja 1b3
1aa  4883c318                add $24,%rbx
1ae  49ffc5                  inc %r13
1b1  ebcf                    jmp 182
1b3  4989c4                  mov %rax,%r12
1b6  4d85ed                  test %r13,%r13
1b9  7427                    je 1e2
1bb  4883eb18                sub $24,%rbx
1bf  49ffcd                  dec %r13
1c2  488b7b10                mov 16(%rbx),%rdi
1c6  488b7308                mov 8(%rbx),%rsi
1ca  4889f2                  mov %rsi,%rdx
1cd  41ba03000000            mov $3,%r10d
1d3  4c8b03                  mov (%rbx),%r8
1d6  b819000000              mov $25,%eax
1db  0f05                    syscall
1dd  ebd7                    jmp 1b6
1df  4531e4                  xor %r12d,%r12d
1e2  4c89e0                  mov %r12,%rax
1e5  415d                    pop %r13
1e7  415c                    pop %r12
1e9  5b                      pop %rbx
1ea  c3                      ret
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
MOVE = ENTRIES.pop("move")
