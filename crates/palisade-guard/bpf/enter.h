// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* How connections from the world get in: several instances share a published TCP port.
 *
 * Each listens on its own address. `guard_listen` notes who listens where; `guard_enter` runs for each packet that opens
 * a connection to this network namespace and hands those for a published port to the listener of one instance, with the
 * addresses of the packet unchanged. So no listener is on the published port itself, and whoever binds it gets nothing.
 */
#ifndef PALISADE_ENTER_H
#define PALISADE_ENTER_H

#include "backend.h"

/* A new listener finds a free slot, or takes one of those that aren't for the first. */
static __always_inline void note_in(struct bpf_sock_ops *ctx, void *map, struct listener_key *key)
{
	int slot;

	for (slot = 0; slot < LISTENER_SLOTS; slot++) {
		key->slot = slot;
		if (!bpf_sock_hash_update(ctx, map, key, BPF_NOEXIST))
			return;
	}
	key->slot = LISTENER_SLOTS_OF_FIRST + bpf_get_prandom_u32() % (LISTENER_SLOTS - LISTENER_SLOTS_OF_FIRST);
	bpf_sock_hash_update(ctx, map, key, BPF_ANY);
}

/* Only a socket at the instance's own address is noted: nobody can pose as another instance. */
static __always_inline void note_listener(struct bpf_sock_ops *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct listener_key key = { .instance = me->instance, .port = ctx->local_port };
	void *policy = current_policy();
	__u32 local[4];

	if (!policy || !key.instance)
		return;
	if (ctx->local_ip4 != key.instance) {
		if (ctx->family != AF_INET6)
			return;
		LOAD4(local, ctx->local_ip6);
		if (!is_private6(local) || local[3] != key.instance)
			return;
		key.ipv6 = 1;
	}
	if (find(policy, RULE_BIND, IPPROTO_TCP, key.port, 0, service_of(key.instance)))
		note_in(ctx, &listeners, &key);
	else
		note_in(ctx, &undeclared, &key);
}

/* The published place that a packet to this address and port belongs to. */
static __always_inline struct rule *find_place(void *policy, const __u32 *local, __u16 port)
{
	struct rule *place;
	int i;

	for (i = 0; i < PLACES_MAX; i++) {
		place = find(policy, RULE_PLACE, IPPROTO_TCP, port, 0, i);
		if (!place)
			return 0;
		if (place->prefix == 0)
			return place;
		if ((place->prefix == 4) != is_mapped(local))
			continue;
		if (place->addr[0] == local[0] && place->addr[1] == local[1] && place->addr[2] == local[2] &&
		    place->addr[3] == local[3])
			return place;
		/* All of the family. */
		if (place->addr[0] == 0 && place->addr[1] == 0 && place->addr[3] == 0)
			return place;
	}
	return 0;
}

/* Hands the packet to the instance if it listens. Global, so that the verifier looks at it once. */
__noinline int hand_over(struct bpf_sk_lookup *ctx, __u32 instance, __u32 port)
{
	struct listener_key key = { .instance = instance, .port = port };
	bool ipv6 = ctx->family == AF_INET6;
	struct bpf_sock *sk;
	int slot, kind, table;
	long failed;

	for (table = 0; table < 2; table++) {
		for (kind = 1; kind >= 0; kind--) {
			/* An IPv6 socket at the IPv4 address takes both families; of one that is IPv4 the kernel says so below. */
			if (kind == 1 && !ipv6)
				continue;
			for (slot = 0; slot < LISTENER_SLOTS; slot++) {
				key.ipv6 = kind;
				key.slot = slot;
				if (table == 0)
					sk = bpf_map_lookup_elem(&listeners, &key);
				else
					sk = bpf_map_lookup_elem(&undeclared, &key);
				if (!sk)
					continue;
				failed = bpf_sk_assign(ctx, sk, 0);
				bpf_sk_release(sk);
				if (!failed)
					return 1;
			}
		}
	}
	return 0;
}

/* To an instance that listens and takes connections; `all`: also to one that is suspended. */
__noinline int hand_to_any(struct bpf_sk_lookup *ctx, __u32 server, __u32 port, __u32 random, __u32 all)
{
	__u32 backend, i;

	for (i = 0; i < DRAWS + INSTANCES_MAX; i++) {
		backend = candidate(server, random, i, all);
		if (backend == NO_MORE_CANDIDATES)
			break;
		if (backend != NO_CANDIDATE && hand_over(ctx, backend, port))
			return 1;
	}
	return 0;
}

static __always_inline int enter(struct bpf_sk_lookup *ctx)
{
	void *policy = current_policy();
	struct rule *place;
	__u32 local[4], random, server;
	__u16 port = ctx->local_port;

	if (!policy || ctx->protocol != IPPROTO_TCP || !find(policy, RULE_PLACE, IPPROTO_TCP, port, 0, 0))
		return SK_PASS;
	/* From the packet alone: where the kernel keeps no state of half-open connections (SYN cookies), the next packet
	 * must find the same listener.
	 */
	random = ctx->remote_port;
	if (ctx->family == AF_INET) {
		set_mapped(local, ctx->local_ip4);
		if (in_private(local[3]) || in_own_localhosts(local[3]))
			return SK_PASS;
		random ^= mix(ctx->remote_ip4);
	} else {
		LOAD4(local, ctx->local_ip6);
		if (is_private6(local))
			return SK_PASS;
		random ^= mix(ctx->remote_ip6[0] ^ mix(ctx->remote_ip6[1] ^ mix(ctx->remote_ip6[2] ^ mix(ctx->remote_ip6[3]))));
	}
	random = mix(random);
	place = find_place(policy, local, port);
	if (!place)
		return SK_PASS;
	server = place->count;
	port = place->port;
	if (hand_to_any(ctx, server, port, random, 0))
		return SK_PASS;
	if (bpf_map_lookup_elem(&suspended, &server) && hand_to_any(ctx, server, port, random, 1))
		return SK_PASS;
	/* Nobody there: the client is refused, whoever else on the host may have the port. */
	return SK_DROP;
}

SEC("sockops")
int guard_listen(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		note_listener(ctx);
	return ALLOW;
}

SEC("sk_lookup")
int guard_enter(struct bpf_sk_lookup *ctx)
{
	return enter(ctx);
}

#endif
