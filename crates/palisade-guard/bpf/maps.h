// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What the programs know and remember.
 */
#ifndef PALISADE_MAPS_H
#define PALISADE_MAPS_H

#include "kernel.h"

struct identity {
	__u32 instance; /* its address; 0: not told yet */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct identity);
} identities SEC(".maps");

struct policy_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	/* Sizes, not types: clang 14 writes only forward declarations into the type information of an inner map. */
	__uint(key_size, sizeof(struct rule_key));
	__uint(value_size, sizeof(struct rule));
};

/* One slot: a new policy is filled in beside the old one and swapped in with one update. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct policy_map);
} policies SEC(".maps");

struct address {
	__u32 word[4];
};

/* Addresses of the host's interfaces, IPv4 as mapped. Kept up to date by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct address);
	__type(value, __u8);
} host_addresses SEC(".maps");

/* Who an unconnected datagram socket has talked to: lets the answers in, and turns their source address back. */
struct flow_key {
	__u64 cookie;
	__u32 addr[4];
	__u16 port;
	__u16 pad[3];
};

struct origin {
	__u32 addr[4]; /* as the program gave it */
	__u16 port;
	__u16 outside; /* flows: it was written to as to somebody outside, and hasn't written first */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct origin);
} flows SEC(".maps");

/* Where a connected socket believes to be connected to, for getpeername. Making an entry costs more than all the
 * rest of a connection's hooks, so TCP's usual case has none: see `is_implied`.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct origin);
} origins SEC(".maps");

/* Who listens on TCP ports that the file declares, and on others, as it may declare them later. These are apart, so that
 * nobody fills the table that others need by listening on very many ports. The kernel takes a socket out when it is closed.
 */
struct listener_map {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16384);
	__type(key, struct listener_key);
	__type(value, __u64);
} listeners SEC(".maps"), undeclared SEC(".maps");

/* By the address of the service. Kept up to date by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct suspension);
} suspended SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* For events: the same one at most once a second, and at most 64 a second of one instance. */
struct report_key {
	__u32 instance;
	__u8 addr[16];
	__u16 port;
	__u8 proto;
	__u8 reason;
	__u8 hook;
	__u8 kind;
	__u8 pad[2];
};

struct report_state {
	__u64 last_ns;
	__u32 suppressed;
	__u32 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct report_key);
	__type(value, struct report_state);
} reported SEC(".maps");

#endif
