// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Private addresses: the arithmetic of `palisade_core::address`, on addresses in network byte order. IPv4 is kept mapped.
 */
#ifndef PALISADE_ADDRESS_H
#define PALISADE_ADDRESS_H

#include "kernel.h"

static __always_inline bool in_private(__u32 addr)
{
	return (addr & bpf_htonl(0xffc00000)) == bpf_htonl(0x7f400000); /* 127.64.0.0/10 */
}

static __always_inline bool in_own_localhosts(__u32 addr)
{
	return (addr & bpf_htonl(0xffc00000)) == bpf_htonl(0x7fc00000); /* 127.192.0.0/10 */
}

static __always_inline __u32 own_localhost(__u32 instance)
{
	return instance | bpf_htonl(0x00800000);
}

static __always_inline __u32 service_of(__u32 instance)
{
	return instance & bpf_htonl(0xffffff00);
}

static __always_inline bool is_loopback(__u32 addr)
{
	return (addr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

static __always_inline bool is_mapped(const __u32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_private6(const __u32 *a)
{
	return a[0] == bpf_htonl(0xfd70616c) && a[1] == bpf_htonl(0x69736164) && a[2] == 0 && a[3] != 0;
}

static __always_inline bool is_localhost6(const __u32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == bpf_htonl(1);
}

static __always_inline void set_mapped(__u32 *to, __u32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

static __always_inline void set_private6(__u32 *to, __u32 addr)
{
	to[0] = bpf_htonl(0xfd70616c);
	to[1] = bpf_htonl(0x69736164);
	to[2] = 0;
	to[3] = addr;
}

static __always_inline void copy_address(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

#endif
