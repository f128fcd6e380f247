// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Where a connect or a datagram may go, and where it really goes: `decide`.
 */
#ifndef PALISADE_CONNECT_H
#define PALISADE_CONNECT_H

#include "backend.h"

/* To a peer by its service or instance address. */
static __always_inline int to_peer(void *ctx, struct call *c, void *policy, struct rule *mine, __u32 dst, __u16 port)
{
	__u32 service = service_of(c->instance), server = service_of(dst);
	struct rule *peer = find(policy, RULE_SERVICE, 0, 0, 0, server), *bind;
	__u32 slot;

	if (!peer)
		return refuse(c, REASON_UNKNOWN_PRIVATE);
	if (server != service) {
		bool allowed = !(mine->flags & SERVICE_NARROWED) && (mine->networks & peer->networks);

		if (!allowed && (mine->flags & SERVICE_NARROWED))
			allowed = find(policy, RULE_PEER, c->proto, port, service, server) ||
				  find(policy, RULE_PEER, 0, 0, service, server);
		if (!allowed && !learns(mine))
			return refuse(c, REASON_NOT_A_PEER);
	}
	c->to = dst;
	c->to_port = port;
	if (dst == server) {
		if (server == service) {
			c->to = c->instance;
		} else {
			if (peer->count == 0)
				return refuse(c, REASON_NO_BACKEND);
			/* An unconnected datagram socket keeps to one replica, connections are spread. */
			slot = 0;
			if (peer->count > 1)
				slot = c->hook == HOOK_SEND ? (__u32)bpf_get_socket_cookie(ctx) : bpf_get_prandom_u32();
			c->to = choose_backend(policy, peer, server, slot);
			if (!c->to)
				return refuse(c, REASON_NO_BACKEND);
		}
	}
	/* TCP listeners are at the instance's own address, published or not. */
	if (c->proto == IPPROTO_UDP && (peer->flags & SERVICE_PUBLISHES)) {
		bind = find(policy, RULE_BIND, c->proto, port, 0, server);
		if (bind && (bind->flags & BIND_PUBLISHED)) {
			c->to_port = bind->port;
			if (bind->prefix == 4)
				c->to = bind->addr[3];
		}
	}
	if (learns(mine)) {
		set_mapped(c->dst, server);
		c->port = port;
		report(c, EVENT_USED);
	}
	return OUTCOME_PRIVATE;
}

/* Does a socket listen on exactly this private address? */
static __always_inline bool listens(void *ctx, __u8 proto, __u32 addr, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool exact;

	tuple.ipv4.daddr = addr;
	tuple.ipv4.dport = bpf_htons(port);
	tuple.ipv4.saddr = addr;
	if (proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	exact = sk->src_ip4 == addr;
	bpf_sk_release(sk);
	return exact;
}

static __always_inline bool host_listens(void *ctx, __u8 proto, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;

	tuple.ipv4.daddr = bpf_htonl(0x7f000001);
	tuple.ipv4.dport = bpf_htons(port);
	tuple.ipv4.saddr = bpf_htonl(0x7f000001);
	if (proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool is_resolver_of(void *policy, __u32 client, const __u32 *dst)
{
	struct rule *resolver;
	int i;

	for (i = 0; i < RESOLVERS_MAX; i++) {
		resolver = find(policy, RULE_RESOLVER, 0, i, client, 0);
		if (!resolver)
			return false;
		if (resolver->addr[0] == dst[0] && resolver->addr[1] == dst[1] && resolver->addr[2] == dst[2] &&
		    resolver->addr[3] == dst[3])
			return true;
	}
	return false;
}

/* A name server of the host's, for whoever may go out at all, or one that the file names for this service. */
static __always_inline bool is_resolver(void *policy, struct rule *mine, __u32 service, const __u32 *dst, __u16 port)
{
	if (port != 53)
		return false;
	if ((mine->flags & SERVICE_EGRESS_ALL) && is_resolver_of(policy, 0, dst))
		return true;
	return is_resolver_of(policy, service, dst);
}

/* What this datagram socket and the destination have had to do with each other. */
static __always_inline struct origin *flow_to(void *ctx, const struct call *c)
{
	struct flow_key key = { .cookie = bpf_get_socket_cookie(ctx), .port = c->port };

	copy_address(key.addr, c->dst);
	return bpf_map_lookup_elem(&flows, &key);
}

/* Has a process of this host written to the socket first? What was written to an address that had been somebody else's
 * opens nothing of the host.
 */
static __always_inline bool is_answer(void *ctx, const struct call *c)
{
	struct origin *flow = flow_to(ctx, c);

	return flow && !flow->outside;
}

/* To localhost in any spelling (`loopback`), or to another address of this host. */
static __always_inline int to_this_host(void *ctx, struct call *c, void *policy, struct rule *mine, bool loopback)
{
	__u32 service = service_of(c->instance);
	struct rule *rule;

	if (c->hook == HOOK_SEND && is_answer(ctx, c))
		return OUTCOME_ANSWER;
	if (loopback) {
		if (listens(ctx, c->proto, own_localhost(c->instance), c->port)) {
			c->to = own_localhost(c->instance);
			c->to_port = c->port;
			return OUTCOME_PRIVATE;
		}
		if (listens(ctx, c->proto, c->instance, c->port)) {
			c->to = c->instance;
			c->to_port = c->port;
			return OUTCOME_PRIVATE;
		}
		rule = find(policy, RULE_BIND, c->proto, c->port, 0, service);
		if (rule && (rule->flags & BIND_PUBLISHED))
			return to_peer(ctx, c, policy, mine, service, c->port);
	}
	if (find(policy, RULE_HOST_PORT, 0, c->port, service, 0))
		return OUTCOME_AS_IS;
	if (loopback && (mine->flags & SERVICE_HOST_MODE)) {
		rule = find(policy, RULE_LOCALHOST, c->proto, c->port, service, 0);
		if (rule) {
			if (rule->flags & LOCALHOST_AMBIGUOUS)
				return refuse(c, REASON_AMBIGUOUS_LOCALHOST);
			return to_peer(ctx, c, policy, mine, rule->addr[0], c->port);
		}
	}
	rule = find(policy, RULE_PUBLISHED, c->proto, c->port, 0, 0);
	if (rule && (!loopback || (mine->flags & SERVICE_HOST_MODE)))
		return to_peer(ctx, c, policy, mine, rule->addr[0], rule->port);
	if (is_resolver(policy, mine, service, c->dst, c->port))
		return OUTCOME_AS_IS;
	if (!loopback)
		return refuse(c, REASON_HOST_PORT);
	if (host_listens(ctx, c->proto, c->port))
		return refuse(c, REASON_HOST_LOOPBACK);
	/* Nobody is there: let the kernel say "connection refused", as it would in a container. */
	c->to = (mine->flags & SERVICE_HOST_MODE) ? c->instance : own_localhost(c->instance);
	c->to_port = c->port;
	return OUTCOME_PRIVATE;
}

static __always_inline bool is_metadata(const __u32 *dst)
{
	if (is_mapped(dst))
		return (dst[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000) || /* 169.254.0.0/16 */
		       dst[3] == bpf_htonl(0x646464c8);                             /* 100.100.100.200, Alibaba */
	/* fd00:ec2::254 of AWS and fd20:ce::254 of Google. */
	return (dst[0] == bpf_htonl(0xfd000ec2) || dst[0] == bpf_htonl(0xfd2000ce)) && dst[1] == 0 && dst[2] == 0 &&
	       dst[3] == bpf_htonl(0x254);
}

/* What is sent to everybody on a link is heard by the host's own services too. */
static __always_inline bool is_for_many(const __u32 *dst)
{
	if (is_mapped(dst))
		return (dst[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || dst[3] == 0xffffffff;
	return (dst[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool in_network(const __u32 *addr, const __u32 *network, __u8 prefix)
{
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		int bits = (int)prefix - 32 * i;
		__u32 mask;

		if (bits <= 0)
			return true;
		mask = bits >= 32 ? 0xffffffff : ~(0xffffffffU >> (bits & 31));
		if ((addr[i] ^ network[i]) & bpf_htonl(mask))
			return false;
	}
	return true;
}

static __always_inline int to_outside(void *ctx, struct call *c, void *policy, struct rule *mine)
{
	__u32 service = service_of(c->instance);
	struct rule *rule;
	int i;

	if (is_metadata(c->dst)) {
		if (is_resolver(policy, mine, service, c->dst, c->port))
			return OUTCOME_OUTSIDE;
		return refuse(c, REASON_METADATA);
	}
	if (mine->flags & SERVICE_EGRESS_ALL) {
		if (learns(mine))
			report(c, EVENT_USED);
		else if (is_for_many(c->dst))
			return refuse(c, REASON_HOST_PORT);
		return OUTCOME_OUTSIDE;
	}
	for (i = 0; i < EGRESS_RULES_MAX; i++) {
		if (i >= mine->port)
			break;
		rule = find(policy, RULE_EGRESS, 0, i, service, 0);
		if (!rule)
			break;
		if ((rule->proto == 0 || rule->proto == c->proto) && (rule->port == 0 || rule->port == c->port) &&
		    in_network(c->dst, rule->addr, rule->prefix))
			return OUTCOME_OUTSIDE;
	}
	/* An answer to somebody who wrote to a published datagram port. */
	if (c->hook == HOOK_SEND && flow_to(ctx, c))
		return OUTCOME_OUTSIDE;
	if (learns(mine)) {
		report(c, EVENT_USED);
		return OUTCOME_OUTSIDE;
	}
	return refuse(c, REASON_EGRESS);
}

static __noinline int decide(struct bpf_sock_addr *ctx, struct call *c)
{
	void *policy = current_policy();
	struct rule *mine;
	struct address key;
	__u32 v4;

	if (!policy || !c->instance)
		return refuse(c, REASON_NO_POLICY);
	mine = find(policy, RULE_SERVICE, 0, 0, 0, service_of(c->instance));
	if (!mine)
		return refuse(c, REASON_NO_POLICY);
	if (is_mapped(c->dst) || is_private6(c->dst)) {
		v4 = c->dst[3];
		if (in_private(v4))
			return to_peer(ctx, c, policy, mine, v4, c->port);
		if (in_own_localhosts(v4)) {
			if (v4 != own_localhost(c->instance))
				return refuse(c, REASON_UNKNOWN_PRIVATE);
			c->to = v4;
			c->to_port = c->port;
			return OUTCOME_PRIVATE;
		}
		if (is_private6(c->dst))
			return refuse(c, REASON_UNKNOWN_PRIVATE);
		if (v4 == 0 || is_loopback(v4))
			return to_this_host(ctx, c, policy, mine, true);
	} else if (c->dst[0] == 0 && c->dst[1] == 0 && c->dst[2] == 0 &&
		   (c->dst[3] == 0 || c->dst[3] == bpf_htonl(1))) {
		return to_this_host(ctx, c, policy, mine, true);
	}
	copy_address(key.word, c->dst);
	if (bpf_map_lookup_elem(&host_addresses, &key))
		return to_this_host(ctx, c, policy, mine, false);
	return to_outside(ctx, c, policy, mine);
}

#endif
