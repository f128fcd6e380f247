// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* One call that is to be judged, where its rules are found, and how a refusal is reported.
 */
#ifndef PALISADE_CALL_H
#define PALISADE_CALL_H

#include "address.h"
#include "maps.h"

enum outcome {
	OUTCOME_REFUSE = 0,
	OUTCOME_AS_IS = 1,   /* a service of the host that may be used: nothing is rewritten */
	OUTCOME_PRIVATE = 2, /* goes to `to`:`to_port`, from the instance's own address */
	OUTCOME_OUTSIDE = 3,
	OUTCOME_ANSWER = 4,  /* a datagram back to a process of the host that wrote first: nothing is rewritten */
};

struct call {
	__u32 instance;
	__u32 dst[4]; /* what the program asked for: IPv6, or IPv4 mapped */
	__u32 to;     /* answer */
	__u16 port;
	__u16 to_port; /* answer */
	__u8 proto;
	__u8 hook;
	__u8 reason;
	__u8 family; /* for events about sockets */
	__u8 type;
	__u8 pad[3];
};

static __always_inline __u8 transport(__u32 protocol)
{
	return protocol == IPPROTO_TCP ? IPPROTO_TCP : IPPROTO_UDP;
}

static __noinline int report(struct call *c, __u8 kind)
{
	struct report_key key = {
		.instance = c->instance,
		.port = c->port,
		.proto = c->proto,
		.reason = c->reason,
		.hook = c->hook,
		.kind = kind,
	};
	struct report_key all = { .instance = c->instance };
	struct report_state fresh = {}, *state, *budget;
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 suppressed = 0;
	struct event *e;

	__builtin_memcpy(key.addr, c->dst, 16);
	state = bpf_map_lookup_elem(&reported, &key);
	if (state) {
		if (kind == EVENT_USED)
			return 0;
		if (now - state->last_ns < 1000000000ULL) {
			__sync_fetch_and_add(&state->suppressed, 1);
			return 0;
		}
		suppressed = state->suppressed;
	}
	budget = bpf_map_lookup_elem(&reported, &all);
	if (!budget) {
		fresh.last_ns = now;
		fresh.count = 1;
		bpf_map_update_elem(&reported, &all, &fresh, BPF_ANY);
	} else if (now - budget->last_ns > 1000000000ULL) {
		budget->last_ns = now;
		budget->count = 1;
	} else if (kind == EVENT_REFUSED) {
		__sync_fetch_and_add(&budget->count, 1);
		if (budget->count > 64) {
			__sync_fetch_and_add(&budget->suppressed, 1);
			return 0;
		}
	}
	fresh.last_ns = now;
	fresh.count = 0;
	bpf_map_update_elem(&reported, &key, &fresh, BPF_ANY);

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0;
	e->time_ns = now;
	e->instance = c->instance;
	e->pid = 0;
	e->uid = 0;
	e->suppressed = suppressed;
	__builtin_memcpy(e->addr, c->dst, 16);
	e->port = c->port;
	e->proto = c->proto;
	e->kind = kind;
	e->hook = c->hook;
	e->reason = c->reason;
	e->family = c->family;
	e->type = c->type;
	__builtin_memset(e->comm, 0, sizeof(e->comm));
	/* A received packet interrupts whoever happens to run: not the one to name. */
	if (c->hook != HOOK_RECEIVE) {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		e->uid = (__u32)bpf_get_current_uid_gid();
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline int refuse(struct call *c, __u8 reason)
{
	c->reason = reason;
	report(c, EVENT_REFUSED);
	return OUTCOME_REFUSE;
}

static __always_inline struct rule *find(void *policy, __u8 kind, __u8 proto, __u16 port, __u32 client, __u32 server)
{
	struct rule_key key = { .kind = kind, .proto = proto, .port = port, .client = client, .server = server };

	return bpf_map_lookup_elem(policy, &key);
}

static __always_inline void *current_policy(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&policies, &zero);
}

/* A learning service is only watched where its own stack is concerned. */
static __always_inline bool learns(const struct rule *mine)
{
	return mine->flags & SERVICE_LEARN;
}

#endif
