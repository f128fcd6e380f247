// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What the programs need of the kernel's headers, and how a context is read and written.
 */
#ifndef PALISADE_KERNEL_H
#define PALISADE_KERNEL_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include "guard.h"

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_UDPLITE_ 136
#define IPPROTO_ROUTING_ 43
#define IPPROTO_DSTOPTS_ 60
#define SOL_SOCKET 1
#define SO_MARK 36
#define TCP_ESTABLISHED 1
#define LOOPBACK_IFINDEX 1
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

/* What a sock_addr program returns. */
#define REFUSE 0
#define ALLOW 1
#define ALLOW_LOW_PORT 3 /* a bind below 1024 without CAP_NET_BIND_SERVICE, Linux 5.12 */

/* The verifier wants each context field written on its own, at a constant offset from the context itself; left to
 * itself clang turns neighbouring stores into one through a computed pointer.
 */
#define STORE(field, value) (*(volatile typeof(field) *)&(field) = (value))

/* An IPv6 address out of a context, and into one. */
#define LOAD4(to, field)                   \
	do {                               \
		(to)[0] = (field)[0];      \
		(to)[1] = (field)[1];      \
		(to)[2] = (field)[2];      \
		(to)[3] = (field)[3];      \
	} while (0)
#define STORE4(field, from)                \
	do {                               \
		STORE((field)[0], (from)[0]); \
		STORE((field)[1], (from)[1]); \
		STORE((field)[2], (from)[2]); \
		STORE((field)[3], (from)[3]); \
	} while (0)

/* ---- what the kernel's own structures are needed for: is a socket IPv6 only? ---- */

struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));

struct tcp6_sock;
struct udp6_sock;

#endif
